"""Kinds of evaluation jobs, one module each."""
