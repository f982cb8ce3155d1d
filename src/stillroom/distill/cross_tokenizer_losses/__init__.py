"""Losses between a teacher and a student with different tokenizers, one per file."""

REGISTRY = "losses between different tokenizers"
