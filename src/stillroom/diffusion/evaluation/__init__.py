"""Evaluation.

Likelihood bounds, validation, comparison with an autoregressive model, decoding sweeps.
"""
