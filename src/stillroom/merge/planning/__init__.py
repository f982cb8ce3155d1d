"""Merge plans: sources, tensor rules, tokenizers, mixtures of experts and transplants."""
