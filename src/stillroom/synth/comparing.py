"""Variety of what a run made beside that of what it started from.

The figures are those of the collapse monitor, at equal budgets of words. What was started from is
known from the beginning: it is measured while records are still asked for, as soon as so many words
are made that the budget is known. What was made is measured while it is forced to disk. A figure
does not depend on when it was taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from stillroom.evaluate.diversity import find_tail, measure_diversity
from stillroom.evaluate.metrics import Metric
from stillroom.evaluate.ngrams import CutTexts
from stillroom.synth.tallying import Sample

__all__ = ["LEAST_WORDS", "Comparison", "Figures"]

T = TypeVar("T")
LEAST_WORDS = 200
_BUDGET = 5000
_ENOUGH = 11_000
"""Words made, of which half is more than the budget, whichever texts are still drawn or leave."""
_DRAWS = 10
_PIECE = 8
_REST_S = 0.0005


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured of each side, by figure, and of draws of how many words."""

    budget: int
    sides: Mapping[str, Mapping[str, Metric]]


@dataclass(frozen=True, slots=True)
class _Start:
    """What is measured of texts that were started from, and which words are rare there."""

    budget: int
    figures: Mapping[str, Metric] = field(default_factory=dict)
    tail: frozenset[str] = frozenset()
    mass: float = 0.0


class Comparison:
    """Compares what is made with the texts that a run starts from."""

    def __init__(self, seeds: Sequence[str] = ()) -> None:
        """Take the texts; none of them is read yet."""
        self._seeds = seeds
        self._ahead: Future[tuple[Sample, _Start]] | None = None
        self._begun: tuple[Sample, Future[Figures | None]] | None = None

    def look_ahead(self, made: Sample) -> None:
        """Begin to measure what was started from, once enough is made to know the budget."""
        if self._ahead is None and self._seeds and made.words >= _ENOUGH:
            self._ahead = _begin(self._measure_ahead)

    def begin(self, made: Sample) -> None:
        """Begin to measure both sides; nothing more may be added to what is made."""
        self._begun = made, _begin(partial(self._measure, made))

    def measure(self, made: Sample) -> Figures | None:
        """Return the figures of both sides; None where there are too few words to say anything."""
        if self._begun is not None and self._begun[0] is made:
            return self._begun[1].result()
        return self._measure(made)

    def _measure(self, made: Sample) -> Figures | None:
        seeds, start = self._ahead.result() if self._ahead is not None else (None, None)
        if seeds is None and self._seeds:
            seeds = Sample.of(self._seeds)
        least = min(made.words, seeds.words) if seeds is not None else made.words
        if least < LEAST_WORDS:
            return None
        budget = _find_budget(least)
        if start is None or start.budget != budget:
            start = _measure_start(seeds, budget) if seeds is not None else _Start(budget)
        sides: dict[str, Mapping[str, Metric]] = {"made": _measure(*made.drawn(), start)}
        if seeds is not None:
            sides["started from"] = start.figures
        return Figures(budget, sides)

    def _measure_ahead(self) -> tuple[Sample, _Start]:
        """Measure in pieces, between which those who ask and answer come to the processor."""
        seeds = Sample()
        for at, text in enumerate(self._seeds):
            seeds.add(text)
            if not at % _PIECE:
                _rest()
        budget = _find_budget(seeds.words)
        if seeds.words < LEAST_WORDS:
            return seeds, _Start(budget)
        return seeds, _measure_start(seeds, budget, _rest)


def _begin(work: Callable[[], T]) -> Future[T]:
    """Do work on a thread of its own."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="stillroom-compare")
    begun = pool.submit(work)
    pool.shutdown(wait=False)
    return begun


def _rest() -> None:
    time.sleep(_REST_S)


def _find_budget(least: int) -> int:
    """Return how many words are drawn where the smaller side has so many."""
    return min(_BUDGET, int(0.5 * least))


def _measure_start(seeds: Sample, budget: int, pause: Callable[[], None] | None = None) -> _Start:
    """Measure what was started from; its own share of rare words is that of one half of it."""
    texts, cut = seeds.drawn()
    tail, mass = find_tail(cut=cut)
    figures = _measure(texts, cut, _Start(budget, {}, tail, mass), pause)
    if "tail" in figures:
        figures |= measure_diversity(
            texts[1::2],
            budget=budget,
            tail=tail,
            tail_mass=mass,
            draws=_DRAWS,
            only=frozenset({"tail"}),
            cut=cut[1::2],
            pause=pause,
        )
    return _Start(budget, figures, tail, mass)


def _measure(
    texts: Sequence[str], cut: CutTexts, start: _Start, pause: Callable[[], None] | None = None
) -> dict[str, Metric]:
    return measure_diversity(
        texts,
        budget=start.budget,
        tail=start.tail,
        tail_mass=start.mass,
        draws=_DRAWS,
        cut=cut,
        pause=pause,
    )
