"""Verifiers of answers by rule: one method a file."""

REGISTRY = "how an answer is checked"
