"""Losses between a teacher and a student with different tokenizers, one per file."""

SEAM = "how a student learns from a teacher with another tokenizer"
