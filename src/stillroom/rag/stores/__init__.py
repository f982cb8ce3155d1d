"""Choices of an index's store (document store), one a file; ``rag.storage`` has what they open."""

REGISTRY = "storage of an index: a folder, or a database server"
