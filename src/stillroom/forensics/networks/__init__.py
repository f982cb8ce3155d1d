"""Base class of the detectors' networks, and the layers and backbones that they share."""
