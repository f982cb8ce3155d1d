"""Store backends of an index, one to a file."""

SEAM = "where an index lies: a folder, or a database server"
