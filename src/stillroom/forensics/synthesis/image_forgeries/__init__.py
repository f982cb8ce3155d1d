"""Image forgery methods, one file each."""

REGISTRY = "image forgery methods, each with a mask of the forged region"
