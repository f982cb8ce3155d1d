"""Estimators of the evidence lower bound, one file each; ``monte_carlo`` has their mean."""

REGISTRY = "estimators of the lower bound on the log-likelihood"
