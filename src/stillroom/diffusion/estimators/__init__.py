"""Estimators of a text's log-likelihood."""

SEAM = "estimators of the bound on a text's log-likelihood"
