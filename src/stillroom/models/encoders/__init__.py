"""Encoders of text and images: embeddings, sparse and multi-vector encoders, classifiers."""
