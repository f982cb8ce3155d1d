"""VRPO: variance-reduced preference optimization on likelihood bounds.

Source: Zhu et al. 2025 (LLaDA 1.5), arXiv:2505.19223: DPO (Rafailov et al. 2023, arXiv:2305.18290)
with each log-likelihood replaced by its bound, whose estimate takes as many times as there are
samples, one mask a time, and the same masks for the model and its reference. Differs: of each time
exactly as many tokens are masked as its share says (``counted``), which has the same mean and
spreads less; times come from strata.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import DiffusionObjective, ObjectiveContext, TokenizedDataset
from stillroom.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.recipe import DiffusionRecipe
    from stillroom.diffusion.training.data import CorruptedBatch
    from stillroom.records import Record
    from stillroom.train.data import BatchSource

__all__ = ["Vrpo"]


class Vrpo(DiffusionObjective):
    """-log sigmoid of beta times how much more the chosen bound rose than the rejected one."""

    paper: ClassVar[str] = "arXiv:2505.19223"
    needs_model: ClassVar[bool] = True

    beta: float = Field(default=0.1, gt=0, description="how strongly the reference holds it back")
    times: int = Field(default=8, ge=1, le=1024, description="times drawn for a bound")
    masks_per_time: int = Field(
        default=1, ge=1, le=1024, description="masks drawn at a time; more times do better"
    )
    share_noise: bool = Field(
        default=True, description="read the reference under the model's own masks"
    )
    is_stratified: bool = Field(default=True, description="draw times from strata, one each")
    counted: bool = Field(
        default=True,
        description="mask exactly as many tokens as the time says; false masks each by its chance",
    )

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return that a start is named: a diffusion checkpoint."""
        return {"start": "path/to/checkpoint"}

    @property
    @override
    def reads(self) -> float:
        """Two answers, each sample read twice without a gradient and once with one."""
        return 2 * self.times * self.masks_per_time * (1 + 2 / 3)

    def loss(self, policy: Tensor, reference: Tensor) -> Tensor:
        """Return each pair's loss, (P,).

        Args:
            policy: Bounds of the chosen and the rejected answer, (P, 2), nats.
            reference: Those by the reference, (P, 2).
        """
        import torch

        return -torch.nn.functional.logsigmoid(self.score(policy, reference))

    def score(self, policy: Tensor, reference: Tensor) -> Tensor:
        """Return by how much more the chosen bound rose, times beta, (P,)."""
        rise = policy - reference
        return self.beta * (rise[:, 0] - rise[:, 1])

    @override
    def encode(
        self,
        recipe: DiffusionRecipe,
        model: DiffusionModel,
        records: Sequence[Record],
        on_done: Callable[[], None] | None = None,
    ) -> TokenizedDataset:
        from stillroom.diffusion.training.preferences import tokenize_pairs

        return tokenize_pairs(
            model.tokenizer,
            records,
            max_tokens=recipe.max_tokens,
            first=int(model.metadata.logit_shift),
            on_done=on_done,
        )

    @override
    def begin(self, course: ObjectiveContext) -> BatchSource[CorruptedBatch]:
        from stillroom.diffusion.training.preferences import PreferenceDataSource

        return PreferenceDataSource(self, course)

    @override
    def miss(self, recipe: DiffusionRecipe, records: int) -> DataError:
        return DataError(
            f"none of {records} records tells a pair that differs within {recipe.max_tokens} "
            "tokens",
            code="diffusion.no-pairs",
            where="records",
            expected="fields.chosen and fields.rejected, two texts, as synth's preference "
            "generators write them",
            next="stillroom new synth/preference_judge, or raise max_tokens",
        )

    @override
    def measure(
        self, recipe: DiffusionRecipe, model: DiffusionModel, records: Sequence[Record]
    ) -> dict[str, float]:
        from stillroom.diffusion.training.preferences import evaluate_pairs

        return evaluate_pairs(self, recipe, model, self.encode(recipe, model, records).items)
