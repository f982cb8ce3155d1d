"""The file check: ordered evidence on a file's origin, and its report page."""
