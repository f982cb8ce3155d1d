"""Supervised fine-tuning (SFT): the loss is on the assistant's answers, prompts are given.

Source: Nie et al. 2025 (LLaDA), arXiv:2502.09992, section 2.3: of a conversation, one random turn
is learned per step, with everything before it.
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

__all__ = ["Sft"]


class Sft(TrainingStage):
    """Loss on answers."""

    paper: ClassVar[str] = "arXiv:2502.09992"

    one_turn: bool = Field(
        default=True,
        description="train on one random answer of a conversation per step, with its context",
    )

    @override
    def excerpt(
        self,
        ids: Integers,
        is_maskable: Bools,
        turns: Sequence[tuple[int, int]],
        rng: np.random.Generator,
    ) -> tuple[Integers, Bools]:
        if not self.one_turn or len(turns) < 2:
            return ids, is_maskable
        start, stop = turns[int(rng.integers(len(turns)))]
        is_turn = is_maskable[:stop] & False
        is_turn[start:stop] = True
        return ids[:stop], is_turn
