"""TIES: trim small changes, elect a sign, average what agrees.

Source: Yadav et al. 2023, arXiv:2306.01708, Algorithm 1. Differs from the paper: a vote that ends
in a draw elects +, models may have weights, and of equal magnitudes at the threshold the first ones
(by tensor name and element) are kept, so that the share kept is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.merge.method import Block, Blocks, MergeMethod, Place

if TYPE_CHECKING:
    import torch

__all__ = ["Ties"]


class Ties(MergeMethod):
    """Trims over the whole model, as the paper does, or within each tensor."""

    paper: ClassVar[str] = "arXiv:2306.01708"
    needs_base: ClassVar[bool] = True
    uses_densities: ClassVar[bool] = True

    density: float = Field(
        0.2, ge=0, le=1, description="share of each task vector kept, by magnitude"
    )
    scale: float = Field(1.0, description="multiplier of the merged task vector (lambda)")
    trim: Literal["model", "tensor"] = Field(
        "model", description="rank magnitudes over the whole model, or tensor by tensor"
    )
    normalize: bool = Field(True, description="average what agrees; off sums it")

    @override
    def survey(self, tensors: Iterable[Blocks]) -> list[tuple[int, str, int] | None] | None:
        """Return one cut a model over all tensors, as plain values."""
        listed = list(tensors)
        if self.trim == "tensor" or not listed:
            return None
        return self._cuts(listed)

    @override
    def measure(self, blocks: Blocks) -> list[tuple[int, str, int] | None]:
        """Return one cut a model: the surveyed ones, or those of this tensor."""
        return blocks.at.overall if self.trim == "model" else self._cuts([blocks])

    @override
    def combine(
        self,
        base: torch.Tensor | None,
        parents: Sequence[torch.Tensor],
        measured: Any,
        at: Place,
    ) -> torch.Tensor:
        from stillroom.merge.arithmetic import Cut, disjoint_mean, elect_sign, task_vectors, trim

        base, vectors = task_vectors(base, parents, "ties")
        kept = [
            trim(vector, Cut(*cut) if cut else None, at)
            for vector, cut in zip(vectors, measured, strict=True)
        ]
        sign = elect_sign(kept, at.weights)
        merged = disjoint_mean(kept, sign, at.weights, normalize=self.normalize)
        return base + self.scale * merged

    def _cuts(self, tensors: list[Blocks]) -> list[tuple[int, str, int] | None]:
        from stillroom.merge.arithmetic import find_cut, task_vectors

        cuts: list[tuple[int, str, int] | None] = []
        at = tensors[0].at
        for parent, own in enumerate(at.densities or (None,) * len(at.keys)):
            density = self.density if own is None else own

            def vector_of(block: Block, parent: int = parent) -> torch.Tensor:
                return task_vectors(block.base, [block.parents[parent]], "ties")[1][0]

            cut = find_cut(lambda: tensors, vector_of, density)
            cuts.append((cut.bits, cut.name, cut.index) if cut else None)
        return cuts
