"""Evaluation: likelihood bounds, comparison with an autoregressive model, decoding sweeps."""
