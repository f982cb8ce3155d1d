"""Noise schedules (alpha_t; mask ratio at time t), one file each."""

REGISTRY = "masking ratio as a function of time"
