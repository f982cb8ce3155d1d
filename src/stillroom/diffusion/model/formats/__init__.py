"""Published checkpoint formats of diffusion models, one file each."""

REGISTRY = "formats of diffusion checkpoints, loaded with stock modules"
