"""Ingestion: discover, parse, chunk, contextualize and embed documents."""
