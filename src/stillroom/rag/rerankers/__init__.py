"""Rerankers: methods that reorder retrieved passages, one to a file."""

REGISTRY = "reordering of retrieved passages by query and passage together"
