"""Image detector methods, one file each."""

SEAM = "detectors of forged faces"
