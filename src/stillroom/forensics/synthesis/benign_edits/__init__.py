"""Benign edits of real images, one file each."""

SEAM = "benign edits of real images, which are not forgeries"
