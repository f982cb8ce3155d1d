"""Sampling by iterative unmasking: settings, sequence state, KV caches, the sampler."""
