"""Retrieval steps outside the index.

``pipeline`` runs them in order; ``ranking`` holds reciprocal rank fusion, score fusion, near
duplicates and window expansion.
"""
