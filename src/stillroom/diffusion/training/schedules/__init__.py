"""Noise schedules, one file each."""

SEAM = "how much is masked at which time in training"
