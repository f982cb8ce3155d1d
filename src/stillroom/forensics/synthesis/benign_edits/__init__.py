"""Benign edits of real images, one file each."""

SEAM = "benign edits of real pictures, which are no forgeries"
