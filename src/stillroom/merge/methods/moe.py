"""Mixture of experts: every model's MLP is an expert, the base gives the rest, gates from prompts.

Source: Komatsuzaki et al. 2022, sparse upcycling, arXiv:2212.05055. Differs: experts are fine-tuned
from one base instead of copied, and the gate is not trained but set to hidden states of each
expert's prompts.
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
    """Keeps the MLPs of all models; a gate routes each token to a few of them."""

    paper: ClassVar[str] = "arXiv:2212.05055"
    per_model: ClassVar[tuple[str, ...]] = ("positive", "negative", "residual_scale")
    replicates: ClassVar[bool] = True
    min_models: ClassVar[int] = 2

    gate: GateMode = Field(
        "hidden",
        description="source of the gate rows: the prompts' mean hidden state at the layer's MLP "
        "(hidden), that of their last token (last), their embeddings (cheap_embed), or random "
        "values, with norm 1 (random) or as in an untrained layer (uniform)",
    )
    experts_per_token: int = Field(2, ge=1, description="number of experts per token")
    layout: MoeLayoutName = Field(
        "auto",
        description="architecture of the result, with its names and config; auto: by the base",
    )
    shared: int | None = Field(
        None,
        ge=0,
        description="index in 'models', from 0, of the expert used for every token; only "
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
