"""Losses between a teacher and a student whose tokenizers differ, one a file."""

SEAM = "how a student learns from a teacher with another tokenizer"
