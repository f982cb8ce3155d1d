"""Evidence lower bound of the log-likelihood (pretraining and supervised fine-tuning).

Source: Sahoo et al. 2024, arXiv:2406.07524, equation 10; Nie et al. 2025, arXiv:2502.09992,
equation 3. The noise is that of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.interfaces import DiffusionObjective, ObjectiveContext, TokenizedDataset

if TYPE_CHECKING:
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.recipe import DiffusionRecipe
    from stillroom.diffusion.training.data import CorruptedBatch
    from stillroom.records import Record
    from stillroom.train.data import BatchSource

__all__ = ["Bound"]


class Bound(DiffusionObjective):
    """Weighted cross-entropy of masked tokens."""

    paper: ClassVar[str] = "arXiv:2406.07524"
    has_times: ClassVar[bool] = True

    @override
    def encode(
        self,
        recipe: DiffusionRecipe,
        model: DiffusionModel,
        records: Sequence[Record],
        on_done: Callable[[], None] | None = None,
    ) -> TokenizedDataset:
        from stillroom.diffusion.training.data import tokenize_records

        lessons, counts = tokenize_records(
            model.tokenizer,
            records,
            max_tokens=recipe.max_tokens,
            include_prompt=recipe.include_prompt,
            first=int(model.metadata.logit_shift),
            on_done=on_done,
        )
        return TokenizedDataset(lessons, counts.to_json())

    @override
    def begin(self, course: ObjectiveContext) -> BatchSource[CorruptedBatch]:
        from stillroom.diffusion.training.data import CorruptedDataSource

        return CorruptedDataSource(course.lessons, course.recipe, course.metadata, course.steps)
