"""Completion scorers: filters and ranking of a teacher's completions (best of n), one per file."""

REGISTRY = "scorers of generated completions"
