"""Constrained decoding: JSON infilling that satisfies a schema."""
