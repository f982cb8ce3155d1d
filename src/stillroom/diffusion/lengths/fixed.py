"""As many places as are asked for.

Source: Nie et al. 2025, arXiv:2502.09992.
"""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from stillroom.diffusion.steps import Length

__all__ = ["Fixed"]


class Fixed(Length):
    """``max_new_tokens`` from the start."""

    paper: ClassVar[str] = "arXiv:2502.09992"

    @override
    def start(self, max_new_tokens: int) -> int:
        return max_new_tokens
