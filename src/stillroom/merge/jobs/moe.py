"""Build a mixture of experts from dense models that were fine-tuned from one base."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.jobs.kind import JobKind, defer
from stillroom.merge.jobs.recipe import MERGE_REPLAYER, MergeInput, MergeJobRecipe
from stillroom.merge.settings import ExpertEntry, GateMode, MoeArchitecture
from stillroom.recipes import Recipe, Reference

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.engine.merge import Merge

__all__ = ["JOB_KIND", "MoeRecipe"]


class _MoeInputs(Recipe):  # a base class of its own, so that the recipe begins with the models
    base_model: Reference = Field(
        description="gives all tensors except the MLPs, and is run on the prompts"
    )
    experts: tuple[ExpertEntry, ...] = Field(
        min_length=2, description="models whose MLPs become experts, of the base's shape"
    )
    shared_expert: ExpertEntry | None = Field(
        None, description="an expert used for every token; only qwen2_moe has one"
    )
    gate_mode: GateMode = Field(
        "hidden",
        description="source of the gate rows: the prompts' mean hidden state at the layer's MLP "
        "(hidden), that of their last token (last), their embeddings (cheap_embed), or random "
        "values, with norm 1 (random) or as in an untrained layer (uniform)",
    )
    experts_per_token: int = Field(2, ge=1, description="number of experts per token")
    architecture: MoeArchitecture = Field(
        "auto",
        description="architecture of the result, with its names and config; auto: by the base",
    )
    arithmetic: Literal["paper", "mergekit"] = Field(
        "paper", description="mergekit: compute gates and scaled experts as mergekit 0.1.5"
    )


class MoeRecipe(MergeJobRecipe, _MoeInputs):
    """Build a mixture of experts: the MLP of every model is an expert, the base gives the rest.

    Source: Komatsuzaki et al. 2022, sparse upcycling, arXiv:2212.05055. Differs: experts are
    fine-tuned from one base instead of copied, and the gate is not trained but set to hidden states
    of each expert's prompts.
    """

    kind: Literal["merge.moe"] = Field(
        default="merge.moe", description="build a mixture of experts from dense models"
    )

    @override
    def open(self, say: Callable[[str], None] | None = None) -> Merge:
        from stillroom.merge.engine.merge import Merge
        from stillroom.merge.planning.inputs import TensorRules, open_experts
        from stillroom.merge.planning.moe import plan_moe

        base, parents = open_experts(self, say)
        rules = TensorRules(dtype=self.out.dtype, arithmetic=self.arithmetic)
        return Merge(partial(plan_moe, self), base, parents, rules, self.seed, threads=0)

    def list_experts(self) -> tuple[ExpertEntry, ...]:
        """Return every expert, the shared one last."""
        return (*self.experts, *([self.shared_expert] if self.shared_expert else []))

    def list_inputs(self) -> list[MergeInput]:
        """Return the models in the order of the merge's sources, the base first."""
        inputs = [MergeInput("base", ("base_model",), self.base_model)]
        inputs += [
            MergeInput("model", ("experts", number, "model"), expert.model)
            for number, expert in enumerate(self.experts)
        ]
        if self.shared_expert is not None:
            key = ("shared_expert", "model")
            inputs.append(MergeInput("model", key, self.shared_expert.model))
        return inputs

    def describe_method(self) -> tuple[dict[str, Any], str]:
        """Return name and settings of the mixture, as JSON values, and its paper."""
        settings = {
            "name": "moe",
            "gate_mode": self.gate_mode,
            "experts_per_token": self.experts_per_token,
            "architecture": self.architecture,
        }
        return settings, "arXiv:2212.05055"

    @override
    def review(self, written: Checkpoint) -> list[str]:
        """Return a warning if a gate cannot distinguish two experts."""
        from stillroom.merge.engine.gates import find_similar_gates

        alike = ", ".join(str(layer) for layer in find_similar_gates(written))
        text = f"the gates of layers {alike} cannot tell two experts apart: vary the prompts"
        return [text] if alike else []


JOB_KIND = JobKind(
    recipe=MoeRecipe,
    run=defer("stillroom.merge.jobs.publication:publish_merge"),
    estimate=defer("stillroom.merge.jobs.publication:estimate_merge"),
    replayer=MERGE_REPLAYER,
)
