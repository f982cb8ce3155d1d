"""Embedders, one file each."""

SEAM = "engines that turn texts into vectors"
