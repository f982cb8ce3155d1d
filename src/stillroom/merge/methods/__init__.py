"""Merge methods, one module each."""

SEAM = "methods that merge several checkpoints into one"
