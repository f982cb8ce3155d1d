"""Corruption processes, one file each."""

SEAM = "noisy copies of the training texts"
