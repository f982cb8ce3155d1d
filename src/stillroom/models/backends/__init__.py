"""Backends of text models, one file each."""

SEAM = "engines that generate and score text"
