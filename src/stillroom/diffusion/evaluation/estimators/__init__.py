"""Estimators of the evidence lower bound, one file each."""

SEAM = "estimators of the lower bound on the log-likelihood"
