"""Unmasking orders, one file each."""

SEAM = "ranking of masked positions for unmasking"
