"""Masked diffusion networks: checkpoint metadata, published formats, initialization, passes."""
