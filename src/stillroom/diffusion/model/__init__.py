"""Masked diffusion networks.

Checkpoint metadata, published formats, initialization, forward passes.
"""
