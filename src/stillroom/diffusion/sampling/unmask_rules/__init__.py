"""Rules for the number of tokens unmasked in a step, one file each."""

SEAM = "how many places are written in one step"
