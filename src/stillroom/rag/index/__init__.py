"""The open index: search, access control, and recall of approximate search."""
