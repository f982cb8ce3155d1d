"""Noise schedules, one file each."""

REGISTRY = "masking ratio as a function of time"
