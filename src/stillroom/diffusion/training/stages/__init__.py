"""Training stages, which decide the tokens that are learned, one file each."""

REGISTRY = "training stages: which tokens of a text are learned"
