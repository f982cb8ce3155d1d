"""Selectors: one method per file."""

SEAM = "which records of a pool are chosen, and why the others are not"
