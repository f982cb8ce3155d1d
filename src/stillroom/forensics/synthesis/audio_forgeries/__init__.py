"""Audio forgery methods, one file each."""

SEAM = "audio forgery methods, each with a mask of the forged samples"
