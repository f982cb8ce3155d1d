"""Attention masks of diffusion models in training, one file each."""

REGISTRY = "attention masks of diffusion models in training"
