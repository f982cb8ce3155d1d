"""Unmasking orders, one file each."""

SEAM = "which open place is written first"
