"""Fixed length: ``max_new_tokens`` masked positions from the start.

Source: Nie et al. 2025, arXiv:2502.09992.
"""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from stillroom.diffusion.interfaces import LengthPolicy

__all__ = ["Fixed"]


class Fixed(LengthPolicy):
    """``max_new_tokens`` mask tokens."""

    paper: ClassVar[str] = "arXiv:2502.09992"

    @override
    def start(self, max_new_tokens: int) -> int:
        return max_new_tokens
