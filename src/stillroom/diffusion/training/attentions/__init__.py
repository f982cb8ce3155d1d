"""Attention masks of diffusion models in training, one file each."""

SEAM = "attention masks of diffusion models in training"
