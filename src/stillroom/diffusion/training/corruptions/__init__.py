"""Corruption (forward, noising) processes, one file each."""

REGISTRY = "noisy copies of the training texts"
