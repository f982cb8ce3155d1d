"""Estimators of the evidence lower bound, one file each."""

REGISTRY = "estimators of the lower bound on the log-likelihood"
