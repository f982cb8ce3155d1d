"""Training objectives, one file each."""

SEAM = "training objectives"
