"""Completion scorers: filters and ranking of a teacher's completions, one per file."""

SEAM = "scorers of generated completions"
