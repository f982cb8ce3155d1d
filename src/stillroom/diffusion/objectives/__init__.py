"""Objectives: what the model is trained towards."""

SEAM = "what the model is trained towards"
