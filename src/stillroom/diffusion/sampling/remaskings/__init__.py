"""Remasking rules, one file each."""

SEAM = "what happens to tokens that were written already"
