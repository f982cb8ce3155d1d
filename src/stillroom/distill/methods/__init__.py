"""Distillation objectives: divergences of next-token distributions, one per file."""

SEAM = "what makes a student differ from its teacher: divergences of next-token distributions"
