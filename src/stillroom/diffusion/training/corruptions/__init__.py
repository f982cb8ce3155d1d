"""Corruption processes, one file each."""

SEAM = "noisy copies that a text is learned from"
