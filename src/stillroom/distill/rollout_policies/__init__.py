"""Rollout policies: sources of on-policy training text, one per file."""

REGISTRY = "sources of on-policy text"
