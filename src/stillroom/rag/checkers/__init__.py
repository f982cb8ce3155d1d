"""Groundedness checkers: methods that score whether passages support a sentence, one per file."""

REGISTRY = "checks whether passages support a sentence"
