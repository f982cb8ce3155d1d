"""Commit rules: how many places are written in one step."""

SEAM = "how many places are written in one step"
