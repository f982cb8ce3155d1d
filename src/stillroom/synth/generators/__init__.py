"""Generators: one method per file."""

SEAM = "generate records with a teacher model"
