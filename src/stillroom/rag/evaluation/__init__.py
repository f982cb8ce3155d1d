"""Evaluation of retrieval and of answers, sweeps, and fusion tuning."""
