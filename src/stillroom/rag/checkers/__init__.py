"""Groundedness (faithfulness) checkers: scores of whether passages support a sentence.

A checker scores. ``rag.generation.cited_sentences.CitationStream`` compares the score with the
threshold and decides: supported, unverified or unsupported.
"""

REGISTRY = "checks whether passages support a sentence"
