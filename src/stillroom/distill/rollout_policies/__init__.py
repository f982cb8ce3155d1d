"""Rollout policies: sources of on-policy training text, one per file."""

SEAM = "sources of on-policy text"
