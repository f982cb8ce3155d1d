"""Retrievers: methods that find the passages that match a query, one to a file."""

REGISTRY = "search for passages by words, by vectors, or by both"
