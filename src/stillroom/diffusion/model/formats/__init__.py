"""Published checkpoint formats of diffusion models, one file each."""

SEAM = "formats of diffusion checkpoints, loaded with stock modules"
