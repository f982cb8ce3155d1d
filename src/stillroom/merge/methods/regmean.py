"""RegMean: linear layers whose outputs are nearest to those of all models, in closed form.

Source: Jin et al. 2022, arXiv:2212.09849, section 4.2, with off-diagonal products shrunk by alpha;
``plus_plus`` is RegMean++ (arXiv:2508.03121): the same closed form on statistics whose inputs come
from the partially merged model. All other tensors get the weighted mean. Differs: products are
means over tokens, so that models with more calibration tokens do not count more; solved as a change
from the first parent in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

__all__ = ["Regmean"]


class Regmean(MergeMethod):
    """W = (sum of w W G) (sum of w G)^-1 for linear layers, G from each model's inputs."""

    paper: ClassVar[str] = "arXiv:2212.09849"
    min_models: ClassVar[int] = 2

    statistics: tuple[str, ...] = Field(
        description="folders of Gram statistics, one per model, in any order", min_length=1
    )
    alpha: float = Field(0.9, ge=0, le=1, description="factor of the off-diagonal products")
    plus_plus: bool = Field(
        False, description="the statistics come from the partially merged model (RegMean++)"
    )

    @override
    def check(self, weights: Sequence[float]) -> None:
        from stillroom.merge.tensors.linear_algebra import check_positive_weights

        super().check(weights)
        check_positive_weights(weights, "regmean")

    @override
    def needs_whole(self, name: str, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        from stillroom.merge.tensors.linear_algebra import solve_regmean, weighted_mean
        from stillroom.merge.tensors.storage import find_statistics

        statistics_by_parent = find_statistics(self.statistics, context.keys, "gram", "regmean")
        for statistics in statistics_by_parent:
            if bool(statistics.about.get("plus_plus")) != self.plus_plus:
                raise RecipeError(
                    f"plus_plus is {self.plus_plus}, but {statistics.folder.name} was gathered "
                    f"with {not self.plus_plus}",
                    code="merge.statistics",
                    where="method.plus_plus",
                    expected="statistics gathered with the same plus_plus",
                    next="set plus_plus to the value used for gathering",
                )
        if (
            not all(context.name in statistics for statistics in statistics_by_parent)
            or parents[0].ndim != 2
        ):
            return weighted_mean(parents, context.weights)
        grams = [statistics.array(context.name) for statistics in statistics_by_parent]
        merged = solve_regmean(parents, grams, context.weights, self.alpha)
        return merged.astype(parents[0].dtype)
