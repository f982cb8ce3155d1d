"""Sampling by iterative unmasking: settings, sequence state, KV caches and the sampler."""
