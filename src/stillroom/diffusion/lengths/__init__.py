"""Lengths: how many places a text gets."""

SEAM = "how many places a text gets"
