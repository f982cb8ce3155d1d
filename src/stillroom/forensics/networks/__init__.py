"""Detector networks: shared parts, convolutional streams, audio networks, vision backbones."""
