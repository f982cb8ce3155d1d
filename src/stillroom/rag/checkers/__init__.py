"""Groundedness checkers: methods that score whether passages support a sentence, one to a file."""

SEAM = "how a sentence is checked against passages"
