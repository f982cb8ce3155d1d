"""Mixture of experts: every model's MLP as an expert, the base for all else, gates from prompts.

Source: Komatsuzaki et al. 2022, sparse upcycling, arXiv:2212.05055. Differs: experts are fine-tunes
of one base, not copies of it, and the gate is not trained but points where each one's prompts lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import ArchitectureMerge
from stillroom.merge.planning.moe import MoeLayoutName, find_similar_gates, plan_moe
from stillroom.merge.planning.moe_gates import GateMode

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.planning.inputs import MergeSource, TensorRules
    from stillroom.merge.planning.plan import MergePlan

__all__ = ["Moe"]


class Moe(ArchitectureMerge):
    """Models keep their MLPs whole, side by side; a gate sends each token to a few of them."""

    paper: ClassVar[str] = "arXiv:2212.05055"
    per_model: ClassVar[tuple[str, ...]] = ("positive", "negative", "residual_scale")
    replicates: ClassVar[bool] = True
    least_parents: ClassVar[int] = 2

    gate: GateMode = Field(
        "hidden",
        description="what gate rows are made of: the mean state of prompts that a layer's MLP "
        "sees (hidden), that of their last token (last), their embeddings (cheap_embed), or drawn "
        "numbers, at length 1 (random) or as an untrained layer's (uniform)",
    )
    experts_per_token: int = Field(2, ge=1, description="how many experts a token is sent to")
    layout: MoeLayoutName = Field(
        "auto", description="whose names and config the result has; auto goes by the base"
    )
    shared: int | None = Field(
        None,
        ge=0,
        description="the model, a number in 'models' from 0, that every token goes to; only "
        "qwen2_moe has one",
    )

    @override
    def arrange(
        self, base: MergeSource | None, parents: Sequence[MergeSource], rules: TensorRules
    ) -> MergePlan:
        return plan_moe(
            base,
            parents,
            rules,
            gate=self.gate,
            experts_per_token=self.experts_per_token,
            layout=self.layout,
            shared=self.shared,
        )

    @override
    def review(self, written: Checkpoint) -> tuple[str, ...]:
        alike = list(find_similar_gates(written))
        if not alike:
            return ()
        listed = ", ".join(str(layer) for layer in alike)
        return (f"the gates of layers {listed} cannot tell two experts apart: vary the prompts",)
