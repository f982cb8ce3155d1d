"""Unmasking orders, one file each."""

REGISTRY = "ranking of masked positions for unmasking"
