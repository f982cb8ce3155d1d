"""Groundedness checkers: methods that score whether passages support a sentence, one per file."""

SEAM = "checks whether passages support a sentence"
