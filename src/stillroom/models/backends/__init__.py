"""The engines behind a TextModel, one file each."""

SEAM = "engines that generate and score text"
