"""Detector methods, one file each."""

SEAM = "detectors of forged faces and audio"
