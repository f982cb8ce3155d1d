"""Embeddings of passages and of queries, with their caches."""
