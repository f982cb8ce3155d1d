"""Verifiers: which of a teacher's completions are worth learning from."""

SEAM = "which of a teacher's completions are worth learning from, and which is the best"
