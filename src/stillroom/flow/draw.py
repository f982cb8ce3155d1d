"""Random draw of segments in strata of like cost, and which forgeries such a draw finds.

A plain draw of n of N segments costs by chance half as much again as its mean, or half as much,
since a few segments (answers that a model writes) hold most of the work. So segments are sorted by
their expected cost and cut into strata of about 2 N / n, of each of which two are drawn.
Within a stratum each is equally likely, whatever its cost: a forger who also forged the costs
gains nothing.

K forged segments, k_h of them in stratum h with M_h segments and d_h draws, are missed with the
probability prod_h C(M_h - k_h, d_h) / C(M_h, d_h) (stratified sampling without replacement; Cochran
1977, "Sampling Techniques", 3rd ed., chapter 5). Stated is the worst case over all ways to spread
K over the strata.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Stratum", "draw_segments", "find_detected_count", "find_single_chance"]

_DRAWS_PER_STRATUM = 2
"""With one each the worst case of few segments is weaker; in one stratum, cost is chance."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """Segments of like cost: how many there are, and how many of them are drawn."""

    size: int
    drawn: int


def draw_segments(
    costs: Sequence[float], count: int, seed: int
) -> tuple[frozenset[int], list[Stratum]]:
    """Draw segments in strata; return the positions of the drawn ones, and the strata.

    Costs are expected ones, in any unit; ``count`` is at most their number.
    """
    order = sorted(range(len(costs)), key=lambda place: (-costs[place], place))
    chance, picked, strata, start, done = random.Random(seed), set[int](), [], 0, 0
    parts = math.ceil(count / _DRAWS_PER_STRATUM)
    for number in range(parts):
        drawn = count // parts + (number < count % parts)
        done += drawn
        end = round(done * len(order) / count)
        picked.update(chance.sample(order[start:end], drawn))
        strata.append(Stratum(end - start, drawn))
        start = end
    return frozenset(picked), strata


def find_detected_count(strata: Sequence[Stratum], confidence: float = 0.95) -> int:
    """Return the least number of forged segments that a draw finds with a probability.

    ``confidence`` is that probability, wherever they are; 0 if nothing is drawn. The worst spread
    is found greedily, which is exact since each further segment of one stratum divides its
    probability to be missed by more.
    """
    heap = [(one.drawn / one.size - 1, one.size, one.drawn) for one in strata if one.drawn]
    heapq.heapify(heap)
    missed, forged = 1.0, 0
    while heap:
        ratio, left, drawn = heap[0]
        missed, forged = missed * max(-ratio, 0.0), forged + 1
        if 1 - missed >= confidence:
            return forged
        heapq.heapreplace(heap, (drawn / (left - 1) - 1, left - 1, drawn))
    return 0


def find_single_chance(strata: Sequence[Stratum]) -> float:
    """Return the least probability of any segment to be drawn; 0 if there is none."""
    return min((one.drawn / one.size for one in strata), default=0.0)
