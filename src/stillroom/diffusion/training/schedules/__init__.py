"""Noise schedules, one file each."""

SEAM = "masking ratio as a function of time"
