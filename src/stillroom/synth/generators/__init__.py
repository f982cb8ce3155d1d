"""Generators: one method per file."""

SEAM = "how the teacher is asked for records"
