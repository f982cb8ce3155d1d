"""Distillation objectives: divergences of next-token distributions, one per file."""

REGISTRY = "distillation objectives on next-token distributions"
