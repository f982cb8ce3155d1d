"""Detector methods, one file each."""

SEAM = "what tells forged faces from real ones by their pixels"
