"""Rollouts: generation, collation and the batch source of on-policy distillation."""
