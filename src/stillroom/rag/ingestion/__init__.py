"""Ingestion: discover, parse, chunk, contextualize and embed documents.

Chunkers (splitters) are in ``stillroom.text.chunkers``.
"""
