"""Rules for the number of tokens unmasked in a step, one file each."""

SEAM = "number of positions unmasked per step"
