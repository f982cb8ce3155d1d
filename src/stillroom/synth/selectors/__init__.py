"""Selectors: one method per file."""

SEAM = "select records from a pool"
