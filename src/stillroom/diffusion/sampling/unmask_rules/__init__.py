"""Rules for the number of tokens unmasked in a step (parallel decoding), one file each."""

REGISTRY = "number of positions unmasked per step"
