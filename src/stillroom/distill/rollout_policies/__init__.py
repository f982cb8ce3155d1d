"""Rollout policies: sources of the text that a student learns on, one per file."""

SEAM = "who writes the text that a student learns on: the student, its teacher, or both"
