"""Names that recipes use for settings of several methods; kept apart from OpenCV and torch."""

from __future__ import annotations

from typing import Literal

__all__ = ["Blending", "Calibration", "Colour", "Weights"]

Blending = Literal["alpha", "poisson", "laplacian"]
Colour = Literal["none", "mean", "reinhard", "transport"]
Calibration = Literal["platt", "temperature", "isotonic", "none"]
Weights = Literal["imagenet", "none"]
