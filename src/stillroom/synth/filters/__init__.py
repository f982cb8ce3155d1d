"""Filters: one method per file."""

SEAM = "accept or reject records one by one"
