"""Audio detector methods, one file each."""

REGISTRY = "detectors of forged audio"
