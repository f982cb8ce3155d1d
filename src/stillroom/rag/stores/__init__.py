"""Storage backends of an index, one to a file."""

SEAM = "storage of an index: a folder, or a database server"
