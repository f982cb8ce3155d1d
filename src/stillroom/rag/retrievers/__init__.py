"""Retrievers: methods that find the passages that fit a query, one to a file."""

SEAM = "how passages are found: by words, by vectors, or by both"
