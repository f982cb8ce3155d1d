"""Image detector methods, one file each."""

REGISTRY = "detectors of forged faces"
