"""Embedders, one file each."""

REGISTRY = "engines that turn texts into vectors"
