"""Storage backends of an index, one to a file."""

REGISTRY = "storage of an index: a folder, or a database server"
