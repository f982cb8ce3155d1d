"""VRPO: variance-reduced preference optimization on likelihood bounds.

Source: Zhu et al. 2025 (LLaDA 1.5), arXiv:2505.19223: DPO (Rafailov et al. 2023, arXiv:2305.18290)
with each log-likelihood replaced by its bound, estimated from several times with one mask each,
under the same masks for policy and reference. Differs: the number of masked tokens is fixed by the
time (``counted``), which has the same mean and a lower variance; times are stratified.
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
    """DPO on bounds: -log sigmoid(beta (rise of the chosen bound - rise of the rejected))."""

    paper: ClassVar[str] = "arXiv:2505.19223"
    needs_model: ClassVar[bool] = True

    beta: float = Field(default=0.1, gt=0, description="strength of the reference")
    times: int = Field(default=8, ge=1, le=1024, description="times per bound")
    masks_per_time: int = Field(
        default=1, ge=1, le=1024, description="masks per time; more times are better"
    )
    share_noise: bool = Field(
        default=True, description="evaluate the reference under the masks of the policy"
    )
    is_stratified: bool = Field(default=True, description="draw times by stratified sampling")
    counted: bool = Field(
        default=True,
        description="mask a fixed number of tokens per time; false: mask each independently",
    )

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return a placeholder for the initial checkpoint."""
        return {"start": "path/to/checkpoint"}

    @property
    @override
    def reads(self) -> float:
        """Two answers, each sample with two forward passes and one training pass."""
        return 2 * self.times * self.masks_per_time * (1 + 2 / 3)

    def loss(self, policy: Tensor, reference: Tensor) -> Tensor:
        """Return the loss of each pair, (P,).

        Args:
            policy: Bounds of the chosen and the rejected answer, (P, 2), nats.
            reference: Bounds by the reference, (P, 2).
        """
        import torch

        return -torch.nn.functional.logsigmoid(self.score(policy, reference))

    def score(self, policy: Tensor, reference: Tensor) -> Tensor:
        """Return beta times the difference of the bounds' rises, chosen less rejected, (P,)."""
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
            f"none of {records} records has a pair that differs within {recipe.max_tokens} tokens",
            code="diffusion.no-pairs",
            where="records",
            expected="text in fields.chosen and fields.rejected, as written by synth's preference "
            "generators",
            next="stillroom new synth.records/preference_judge, or raise max_tokens",
        )

    @override
    def measure(
        self, recipe: DiffusionRecipe, model: DiffusionModel, records: Sequence[Record]
    ) -> dict[str, float]:
        from stillroom.diffusion.training.preferences import evaluate_pairs

        return evaluate_pairs(self, recipe, model, self.encode(recipe, model, records).items)
