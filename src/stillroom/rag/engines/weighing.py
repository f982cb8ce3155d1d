"""Weighing: how occurrences of a term become a score, in each of the five BM25s.

Source: Kamphuis et al. 2020, "Which BM25 Do You Mean?", ECIR; the lower bounds by Lv and Zhai 2011,
"When Documents Are Very Long, BM25 Fails!", SIGIR (BM25L, 0.5), and "Lower-bounding Term Frequency
Normalization", CIKM (BM25+, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Bm25Variant", "Weighing", "at_zero", "default_delta", "idf_of", "saturate"]

Bm25Variant = Literal["lucene", "robertson", "atire", "bm25l", "bm25+"]


@dataclass(frozen=True, slots=True)
class Weighing:
    """How occurrences become scores; a key of the cache."""

    k1: float
    b: float
    headings: float
    body: float
    variant: Bm25Variant
    delta: float


def default_delta(variant: Bm25Variant) -> float:
    """Return the lower bound that a variant's own paper has."""
    return 1.0 if variant == "bm25+" else 0.5


def idf_of(variant: Bm25Variant, frequency: int, population: int) -> float:
    """Return what a term counts that ``frequency`` of the rows hold, in nats; never below 0."""
    if variant == "lucene":
        return math.log1p((population - frequency + 0.5) / (frequency + 0.5))
    if not frequency:
        return 0.0
    if variant == "robertson":
        return max(0.0, math.log((population - frequency + 0.5) / (frequency + 0.5)))
    if variant == "atire":
        return math.log(population / frequency)
    if variant == "bm25l":
        return math.log((population + 1) / (frequency + 0.5))
    return math.log((population + 1) / frequency)


def saturate(
    how: Weighing, frequency: NDArray[np.float64], norm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what occurrences score before the idf; ``norm`` is 1 for a row of average length."""
    if how.variant in {"lucene", "robertson"}:
        return frequency / (frequency + how.k1 * norm)
    if how.variant == "bm25l":
        # tf / norm + delta, multiplied through by norm, which is 0 for an empty row at b = 1.
        lifted = frequency + how.delta * norm
        return (how.k1 + 1) * lifted / (how.k1 * norm + lifted)
    scores = (how.k1 + 1) * frequency / (frequency + how.k1 * norm)
    return scores + how.delta if how.variant == "bm25+" else scores


def at_zero(how: Weighing) -> float:
    """Return what no occurrence scores before the idf."""
    if how.variant == "bm25+":
        return how.delta
    if how.variant == "bm25l" and how.delta:
        return (how.k1 + 1) * how.delta / (how.k1 + how.delta)
    return 0.0
