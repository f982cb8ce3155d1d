"""Places where an index lies: one file each."""

SEAM = "where an index lies: a folder, or a database server"
