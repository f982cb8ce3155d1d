"""The engines behind an Embedder, one file each."""

SEAM = "engines that turn texts into vectors"
