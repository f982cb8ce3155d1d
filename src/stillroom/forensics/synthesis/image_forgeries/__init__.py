"""Image forgery methods, one file each."""

SEAM = "ways to forge an image, each with a mask of what is forged"
