"""Published formats of diffusion checkpoints, each read with stock modules."""

SEAM = "formats of diffusion checkpoints that are read with stock modules"
