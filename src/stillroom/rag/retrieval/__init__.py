"""Retrieval steps outside the index: fusion, ordering, window expansion."""
