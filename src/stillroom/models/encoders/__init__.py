"""Encoders of text and images: embeddings, multi-vector encoders, classifiers."""
