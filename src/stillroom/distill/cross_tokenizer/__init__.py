"""Alignment of two tokenizations, and losses between two vocabularies."""
