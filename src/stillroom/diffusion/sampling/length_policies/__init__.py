"""Length policies, one file each."""

SEAM = "how many places a text gets"
