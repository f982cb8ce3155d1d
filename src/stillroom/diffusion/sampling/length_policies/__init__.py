"""Length policies, one file each."""

SEAM = "number of mask tokens of a text of unknown length"
