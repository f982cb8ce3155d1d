"""Losses between a teacher and a student with different tokenizers, one per file."""

SEAM = "losses between different tokenizers"
