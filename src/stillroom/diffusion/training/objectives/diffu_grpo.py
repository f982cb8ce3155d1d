"""diffu-GRPO: group-relative policy optimization with one-step likelihood estimates.

Source: Zhao et al. 2025 (d1), arXiv:2504.12216, section 3 and algorithm 1: several answers to a
prompt, their rewards less the group's mean as advantages, clipped ratios and a penalty by token;
a token's log-probability is read once with the whole answer masked and the prompt masked in part,
anew in every update, under the same masks for the model, the one that wrote, and the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import DiffusionObjective, ObjectiveContext, TokenizedDataset
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.errors import DataError
from stillroom.evaluate.interfaces import VERIFIERS, Verifier

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.recipe import DiffusionRecipe
    from stillroom.diffusion.training.data import CorruptedBatch
    from stillroom.records import Record
    from stillroom.train.data import BatchSource

__all__ = ["DiffuGrpo"]


class DiffuGrpo(DiffusionObjective):
    """Answers that a verifier finds right become likelier than their group's others."""

    paper: ClassVar[str] = "arXiv:2504.12216"
    needs_model: ClassVar[bool] = True

    verifier: Annotated[Verifier, VERIFIERS.choice()] = Field(
        "maths", validate_default=True, description="how an answer is checked: right is 1"
    )
    graded: bool = Field(
        default=True, description="reward the share that is right, where the verifier tells one"
    )
    group: int = Field(default=8, ge=2, le=512, description="answers to each prompt")
    updates: int = Field(
        default=2, ge=1, le=64, description="optimizer steps on the same answers; 1 is on policy"
    )
    prompt_mask: float = Field(
        default=0.15, ge=0, lt=1, description="chance that a token of the prompt is masked"
    )
    clip: float = Field(default=0.2, gt=0, lt=1, description="how far a ratio may leave 1")
    kl_weight: float = Field(
        default=0.04, ge=0, description="penalty of leaving the reference, by token; 0 reads none"
    )
    scale_rewards: bool = Field(
        default=False, description="divide advantages by the group's spread, as GRPO does"
    )
    decode: DecodeSettings = Field(
        default_factory=lambda: DecodeSettings(max_new_tokens=64, temperature=0.9),
        description="how answers are written",
    )

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return that a start is named: a diffusion checkpoint."""
        return {"start": "path/to/checkpoint"}

    @property
    @override
    def reads(self) -> float:
        """Each answer is trained on, read before, and written in about one reading a token."""
        written = self.decode.max_new_tokens / 3 / self.updates
        return self.group * (1 + (1 + (self.kl_weight > 0)) / 3 + written)

    @property
    @override
    def steps_per_batch(self) -> int:
        """Each round of answers is learned from so often."""
        return self.updates

    def advantages(self, rewards: Tensor) -> Tensor:
        """Return each answer's reward less the mean of its group, (G, n).

        Args:
            rewards: Of the answers to each prompt, (G, n).
        """
        centered = rewards - rewards.mean(-1, keepdim=True)
        if not self.scale_rewards:
            return centered
        return centered / (rewards.std(-1, keepdim=True, correction=0) + 1e-4)

    def loss(self, now: Tensor, wrote: Tensor, reference: Tensor, advantage: Tensor) -> Tensor:
        """Return each token's loss, (N,).

        Args:
            now: Log-probabilities by the model, (N,).
            wrote: By the model that wrote the answer, (N,).
            reference: By the model before all training, (N,); not looked at where kl_weight is 0.
            advantage: Of the answer that each token belongs to, (N,).
        """
        ratio = (now - wrote).exp()
        kept = ratio.clamp(1 - self.clip, 1 + self.clip)
        gain = (ratio * advantage).minimum(kept * advantage)
        if not self.kl_weight:
            return -gain
        apart = reference - now
        return self.kl_weight * (apart.exp() - apart - 1) - gain

    @override
    def encode(
        self,
        recipe: DiffusionRecipe,
        model: DiffusionModel,
        records: Sequence[Record],
        on_done: Callable[[], None] | None = None,
    ) -> TokenizedDataset:
        from stillroom.diffusion.training.rollouts import tokenize_prompts

        return tokenize_prompts(
            model.tokenizer,
            records,
            self.verifier,
            max_tokens=min(recipe.max_tokens, model.context_length - self.decode.max_new_tokens),
            on_done=on_done,
        )

    @override
    def begin(self, course: ObjectiveContext) -> BatchSource[CorruptedBatch]:
        from stillroom.diffusion.training.rollouts import RolloutDataSource

        return RolloutDataSource(self, course)

    @override
    def miss(self, recipe: DiffusionRecipe, records: int) -> DataError:
        needs = " or ".join(f"fields.{name}" for name in self.verifier.needs) or "nothing else"
        return DataError(
            f"none of {records} records is a task that '{self.verifier.method_name()}' can check",
            code="diffusion.no-tasks",
            where="records",
            expected=f"a user message within {recipe.max_tokens} tokens, and {needs}",
            next="choose another objective.verifier, or raise max_tokens",
        )

    @override
    def measure(
        self, recipe: DiffusionRecipe, model: DiffusionModel, records: Sequence[Record]
    ) -> dict[str, float]:
        from stillroom.diffusion.training.rollouts import evaluate_prompts

        return evaluate_prompts(self, model, self.encode(recipe, model, records).items)
