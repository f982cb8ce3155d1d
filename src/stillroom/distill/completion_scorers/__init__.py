"""Completion scorers: filters and ranking of a teacher's completions, one per file."""

SEAM = "which of a teacher's completions are worth learning from, and which is the best"
