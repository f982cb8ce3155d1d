"""Merge methods, one module each."""

REGISTRY = "methods that merge several checkpoints into one"
