"""Remasking rules, one file each."""

SEAM = "remasking or editing of unmasked tokens"
