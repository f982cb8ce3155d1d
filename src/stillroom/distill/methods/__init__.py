"""Distillation objectives: divergences of next-token distributions, one per file."""

SEAM = "distillation objectives on next-token distributions"
