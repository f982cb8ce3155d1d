"""Backends of text models, one file each."""

REGISTRY = "engines that generate and score text"
