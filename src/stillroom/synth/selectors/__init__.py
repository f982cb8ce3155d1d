"""Selectors: one method per file."""

REGISTRY = "select records from a pool"
