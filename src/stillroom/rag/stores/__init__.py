"""Choices of an index's store, one to a file; ``rag.storage`` holds what they open."""

REGISTRY = "storage of an index: a folder, or a database server"
