"""Maintenance of an index: update, compact, repair, migrate and rebuild."""
