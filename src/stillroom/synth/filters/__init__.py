"""Filters: one method per file."""

REGISTRY = "accept or reject records one by one"
