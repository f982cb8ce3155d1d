"""Filters: one method per file."""

SEAM = "which records are kept, and why the others are not"
