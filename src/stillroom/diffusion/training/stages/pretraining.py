"""Pretraining: the loss is on all tokens of a text.

Source: Nie et al. 2025 (LLaDA), arXiv:2502.09992, section 2.2: one text in a hundred is truncated
to a random length, so that the model knows short texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import TrainingStage

if TYPE_CHECKING:
    import numpy as np

    from stillroom.diffusion.interfaces import Bools, Integers

__all__ = ["Pretraining"]


class Pretraining(TrainingStage):
    """Loss on all tokens."""

    paper: ClassVar[str] = "arXiv:2502.09992"
    learns_prompts: ClassVar[bool] = True

    truncation_rate: float = Field(
        default=0.01, ge=0, le=1, description="share of texts truncated to a random length"
    )

    @override
    def excerpt(
        self,
        ids: Integers,
        is_maskable: Bools,
        turns: Sequence[tuple[int, int]],
        rng: np.random.Generator,
    ) -> tuple[Integers, Bools]:
        if rng.random() >= self.truncation_rate:
            return ids, is_maskable
        first = turns[0][0]
        length = int(rng.integers(first + 1, len(ids) + 1))
        return ids[:length], is_maskable[:length]
