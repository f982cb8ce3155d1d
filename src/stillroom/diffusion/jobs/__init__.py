"""Kinds of diffusion jobs, one module each."""
