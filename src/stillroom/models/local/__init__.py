"""Local causal language models: loading, generation, batching, grammars."""
