"""Language-model evaluation: held-out loss, perplexity and divergence of distributions."""
