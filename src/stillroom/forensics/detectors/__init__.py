"""Detectors: one file each, found by file name."""

SEAM = "what tells forged faces from real ones by their pixels"
