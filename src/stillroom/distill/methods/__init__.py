"""Objectives of distillation: one divergence between teacher and student a file."""

SEAM = "what makes a student differ from its teacher: divergences of next-token distributions"
