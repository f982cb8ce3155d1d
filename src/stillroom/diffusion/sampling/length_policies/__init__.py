"""Length policies, one file each."""

REGISTRY = "number of mask tokens of a text of unknown length"
