"""Cosine noise schedule: masking ratio 1 - cos(pi t / 2), small ratios drawn more often.

Source: Chang et al. 2022, arXiv:2202.04200; as a schedule of MDLM, arXiv:2406.07524, appendix.
The learning rate has a schedule of its own (``train.settings``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.interfaces import NoiseSchedule

if TYPE_CHECKING:
    from stillroom.diffusion.interfaces import Floats

__all__ = ["Cosine"]


class Cosine(NoiseSchedule):
    """Masking ratio 1 - cos(pi t / 2)."""

    paper: ClassVar[str] = "arXiv:2202.04200"

    @override
    def share(self, t: Floats) -> Floats:
        import numpy as np

        return 1 - np.cos(np.pi / 2 * t)

    @override
    def slope(self, t: Floats) -> Floats:
        import numpy as np

        return np.pi / 2 * np.sin(np.pi / 2 * t)
