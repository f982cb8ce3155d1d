"""Generators: one method per file."""

REGISTRY = "generate records with a teacher model"
