"""Verifiers of answers by rule: one method a file."""

SEAM = "how an answer is checked"
