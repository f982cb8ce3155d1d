"""Noise schedules: how much is masked at which time."""

SEAM = "how much is masked at which time in training"
