"""Noisings: the noisy copies that a text is learned from."""

SEAM = "noisy copies that a text is learned from"
