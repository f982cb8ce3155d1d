"""Audio forgery methods, one file each."""

SEAM = "ways to forge a sound, each with a mask of what is forged"
