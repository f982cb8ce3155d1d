"""Benign edits of real images, one file each."""

REGISTRY = "benign edits of real images, which are not forgeries"
