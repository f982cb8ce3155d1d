"""The bound on the log-likelihood: what is said becomes likelier.

Source: Sahoo et al. 2024, arXiv:2406.07524, equation 10; Nie et al. 2025, arXiv:2502.09992,
equation 3. Pretraining and supervised fine-tuning both; the noise is the recipe's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.learning import Course, Lessons, Objective

if TYPE_CHECKING:
    from stillroom.diffusion.model import DiffusionModel
    from stillroom.diffusion.recipe import DiffusionRecipe
    from stillroom.diffusion.source import NoisyBatch
    from stillroom.records import Record
    from stillroom.train.source import Source

__all__ = ["Bound"]


class Bound(Objective):
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
    ) -> Lessons:
        from stillroom.diffusion.lessons import encode_lessons

        lessons, counts = encode_lessons(
            model.tokenizer,
            records,
            max_tokens=recipe.max_tokens,
            include_prompt=recipe.include_prompt,
            first=int(model.metadata.logit_shift),
            on_done=on_done,
        )
        return Lessons(lessons, counts.to_json())

    @override
    def begin(self, course: Course) -> Source[NoisyBatch]:
        from stillroom.diffusion.source import NoisySource

        return NoisySource(course.lessons, course.recipe, course.metadata, course.steps)
