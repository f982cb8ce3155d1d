"""Remasking: what happens to tokens that were written already."""

SEAM = "what happens to tokens that were written already"
