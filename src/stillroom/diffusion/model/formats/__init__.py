"""Published checkpoint formats of diffusion models, one file each."""

SEAM = "formats of diffusion checkpoints that are read with stock modules"
