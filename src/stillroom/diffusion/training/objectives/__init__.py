"""Training objectives, one file each."""

SEAM = "what the model is trained towards"
