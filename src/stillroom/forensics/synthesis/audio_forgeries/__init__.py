"""Audio forgery methods, one file each."""

REGISTRY = "audio forgery methods, each with a mask of the forged samples"
