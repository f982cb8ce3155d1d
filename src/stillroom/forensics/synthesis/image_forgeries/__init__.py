"""Image forgery methods, one file each."""

SEAM = "image forgery methods, each with a mask of the forged region"
