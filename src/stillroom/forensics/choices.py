"""Names that recipes use for ways of colouring and blending; kept apart, since OpenCV is not."""

from __future__ import annotations

from typing import Literal

__all__ = ["Blending", "Colour"]

Blending = Literal["alpha", "poisson", "laplacian"]
Colour = Literal["none", "mean", "reinhard", "transport"]
