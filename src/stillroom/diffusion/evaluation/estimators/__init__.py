"""Estimators of the evidence lower bound, one file each."""

SEAM = "estimators of the bound on a text's log-likelihood"
