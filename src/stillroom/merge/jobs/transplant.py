"""Give a model another model's tokenizer, without training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.jobs.kind import JobKind, defer
from stillroom.merge.jobs.recipe import MERGE_REPLAYER, MergeInput, MergeJobRecipe
from stillroom.recipes import Recipe, Reference

if TYPE_CHECKING:
    from stillroom.merge.engine.merge import Merge

__all__ = ["JOB_KIND", "TransplantRecipe"]


class _TransplantInputs(Recipe):  # a base class of its own, so that the recipe begins with them
    target: Reference = Field(description="the model that gets a new tokenizer")
    donor: Reference = Field(description="the model that gives the tokenizer")
    k: int = Field(64, ge=1, description="maximum number of shared tokens per new token")


class TransplantRecipe(MergeJobRecipe, _TransplantInputs):
    """Give the target the donor's tokenizer; its layers stay.

    Source: Goddard and Fernandes Neto 2025, arXiv:2506.06607: rows of shared tokens are copied; a
    new token is approximated by a sum of shared ones in the donor's embeddings.
    """

    kind: Literal["merge.transplant"] = Field(
        default="merge.transplant", description="give a model another model's tokenizer"
    )

    @override
    def open(self, say: Callable[[str], None] | None = None) -> Merge:
        from stillroom.merge.engine.merge import Merge
        from stillroom.merge.planning.inputs import TensorRules, open_source
        from stillroom.merge.planning.transplant import plan_transplant

        target, donor = open_source(self.target, say), open_source(self.donor, say)
        rules = TensorRules(dtype=self.out.dtype)
        return Merge(partial(plan_transplant, self), target, [donor], rules, self.seed, threads=0)

    def list_inputs(self) -> list[MergeInput]:
        """Return the target and the donor."""
        return [
            MergeInput("base", ("target",), self.target),
            MergeInput("model", ("donor",), self.donor),
        ]

    def describe_method(self) -> tuple[dict[str, Any], str]:
        """Return name and settings of the transplant, as JSON values, and its paper."""
        return {"name": "transplant", "k": self.k}, "arXiv:2506.06607"


JOB_KIND = JobKind(
    recipe=TransplantRecipe,
    run=defer("stillroom.merge.jobs.publication:publish_merge"),
    estimate=defer("stillroom.merge.jobs.publication:estimate_merge"),
    replayer=MERGE_REPLAYER,
)
