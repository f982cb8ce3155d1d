"""Groundedness checkers: methods that score whether passages support a sentence, one per file.

A checker scores. ``rag.generation.citations.CitationStream`` compares the score with the threshold
and decides: supported, unverified or unsupported.
"""

REGISTRY = "checks whether passages support a sentence"
