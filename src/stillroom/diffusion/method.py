"""The seams of this room, and the base classes of what stands in them.

What each method is given and must give back is said in the module that its base class is in.
"""

from __future__ import annotations

from stillroom.diffusion.layout import LAYOUTS, Layout

__all__ = ["LAYOUTS", "Layout"]
