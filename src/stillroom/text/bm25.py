"""BM25: how occurrences of a term become a score, in each of the five BM25s.

Source: Robertson and Zaragoza 2009, doi:10.1561/1500000019; the variants as Kamphuis et al. 2020
have them, "Which BM25 Do You Mean?", ECIR; the lower bounds by Lv and Zhai 2011, "When Documents
Are Very Long, BM25 Fails!", SIGIR (BM25L, 0.5), and "Lower-bounding Term Frequency Normalization",
CIKM (BM25+, 1).

Does not know where terms and their occurrences lie: in a file of postings or in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from stillroom.text.impacts import Impacts

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Bm25Variant",
    "Weighing",
    "at_zero",
    "default_delta",
    "idf_of",
    "saturate",
    "weigh_term",
]

Bm25Variant = Literal["lucene", "robertson", "atire", "bm25l", "bm25+"]


@dataclass(frozen=True, slots=True)
class Weighing:
    """How occurrences become scores; a key of the cache."""

    k1: float = 1.2
    b: float = 0.75
    headings: float = 1.0
    body: float = 1.0
    variant: Bm25Variant = "lucene"
    delta: float = 0.5


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


def weigh_term(
    how: Weighing,
    rows: NDArray[np.int64],
    frequency: NDArray[np.float64],
    lengths: NDArray[np.float64],
    population: int,
) -> Impacts:
    """Return what a term adds to each row that holds it; nothing where its idf is 0.

    Of BM25L and BM25+ a row that lacks the term gets what zero occurrences score, so that all rows
    have the same number of summands.

    Args:
        how: The variant and its settings.
        rows: Which rows hold the term, (N,), ascending.
        frequency: How often each of them does, (N,), above 0.
        lengths: The terms of each of them over the mean of all rows, (N,).
        population: How many rows there are.
    """
    idf = idf_of(how.variant, len(rows), population)
    if not len(rows) or idf <= 0:
        return Impacts(np.zeros(0, dtype=np.int64), np.zeros(0), 0.0, 0.0)
    absent = idf * at_zero(how)
    values = idf * saturate(how, frequency, 1 - how.b + how.b * lengths) - absent
    return Impacts(rows, values, float(values.max()), absent)
