"""Causal language models in this process: loading, generation, batching, grammars."""
