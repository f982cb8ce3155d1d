"""Names and bounds that recipes use for several methods; kept apart from OpenCV and torch."""

from __future__ import annotations

from typing import Literal

__all__ = ["LEAST_S", "Blending", "Calibration", "Colour", "Weights"]

Blending = Literal["alpha", "poisson", "laplacian"]
Colour = Literal["none", "mean", "reinhard", "transport"]
Calibration = Literal["platt", "temperature", "isotonic", "none"]
Weights = Literal["imagenet", "none"]
LEAST_S = 3.0
"""Seconds of sound that carry a watermark, at least."""
