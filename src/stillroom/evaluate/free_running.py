"""What models write when nobody corrects them: repetition, accumulated error.

Teacher-forced error reads right text so far; a served model reads its own. How much more it errs
there is exposure bias, told here as the excess of the error that accumulates. Knows tokens, no
recipes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stillroom.evaluate.metrics import Metric, bootstrap_counts

__all__ = ["accumulated_error", "distinct_share"]

Floats = npt.NDArray[np.float64]


def distinct_share(ids: Sequence[int], n: int) -> float | None:
    """Return the share of a text's n-grams that are distinct; None where it has none.

    Source: Li et al. 2016, arXiv:1510.03055 (distinct-n); here within one completion, so that low
    means that it repeats itself.
    """
    grams = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def accumulated_error(
    free: Sequence[Floats], forced: Sequence[Floats], *, seed: int = 0, name: str = ""
) -> Metric:
    """Return by how much more error accumulates on a model's own text than on its teacher's.

    0 says that errors do not feed on each other; 0.5 that half as much again comes of them. At each
    depth the mean is over the records whose text is that long, and only depths that both reach
    count.

    Source: Arora et al. 2022, arXiv:2204.01171, section 3.2 (ExAccErr, here a share, not per cent);
    the teacher is the oracle, and its error is the whole KL(teacher || student) at each step.

    Args:
        free: KL(teacher || student) at each depth of the student's own sampled text, by record.
        forced: The same of text that the teacher sampled after the same prompts.
        seed: Of the bootstrap over records.
        name: The metric's name.
    """
    depth = max([len(row) for row in [*free, *forced]], default=0)
    sides = [_square(rows, depth) for rows in (free, forced)]

    def excess(counts: Floats) -> Floats:
        means, alive = [], np.ones((len(counts), depth), dtype=bool)
        for values, present in sides:
            number = counts @ present
            means.append((counts @ values) / np.where(number > 0, number, 1))
            alive &= number > 0
        return np.asarray((means[0] * alive).sum(1) / (means[1] * alive).sum(1) - 1)

    return bootstrap_counts(excess, len(free), seed=seed, name=name)


def _square(rows: Sequence[Floats], depth: int) -> tuple[Floats, Floats]:
    """Return values and presence, (records, depth) each."""
    values, present = np.zeros((len(rows), depth)), np.zeros((len(rows), depth))
    for at, row in enumerate(rows):
        values[at, : len(row)], present[at, : len(row)] = row, 1
    return values, present
