"""Completion scorers: filters and ranking of a teacher's completions, one per file."""

REGISTRY = "scorers of generated completions"
