"""How much of a reference's variety other texts still have, and when to warn.

One yardstick measures every generation alike: draws of as many words, the same rare words, the same
vectors to be covered, the same text to be foreseen. Knows texts and vectors, neither files nor
models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stillroom.evaluate import Metric, bootstrap
from stillroom.evaluate.character_model import CharacterModel
from stillroom.evaluate.diversity import (
    Vectors,
    coverage,
    find_tail,
    measure_diversity,
    tail_share,
)
from stillroom.text.normalize import words

__all__ = ["WORSE", "Warned", "Yardstick", "find_few", "find_warnings", "text_budget"]

WORSE = {
    "distinct_1": -1,
    "distinct_3": -1,
    "self_bleu": 1,
    "compression": 1,
    "repeated": 1,
    "tail": -1,
    "vendi": -1,
    "spread": -1,
    "coverage": -1,
    "surprise": 1,
    "perplexity": 1,
}
"""Which way each figure moves when variety is lost."""
_SHARE = 0.5
_MOST_LEARNED = 400_000
_MOST_READ = 100_000
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Warned:
    """A figure of a generation that has moved for the worse, and by which share."""

    generation: str
    figure: str
    change: float


class Yardstick:
    """Measures texts beside a reference: its rare words, its vectors, and what it is to foresee.

    ``surprise`` is the bits a character that the reference costs who has learned nothing but the
    texts (``CharacterModel``): text that departs from people's, whatever its variety, teaches less
    about it. Both sides learn from as much; ``learned`` says otherwise.
    """

    def __init__(
        self,
        reference: Sequence[str],
        *,
        budget: int,
        vectors: Vectors | None = None,
        seed: int = 0,
        draws: int = 20,
    ) -> None:
        """Learn the reference.

        Args:
            reference: Texts that people wrote.
            budget: Words of a draw.
            vectors: One for each text, (N, D), L2-normalized.
            seed: Of the draws.
            draws: How many.
        """
        self.budget, self.seed, self.draws = budget, seed, draws
        self.tail, self.mass = find_tail(reference)
        self._half = None if vectors is None else vectors[::2]
        self._reference = list(reference)
        self._learnable = sum(map(len, reference[::2]))

    def measure(
        self,
        texts: Sequence[str],
        vectors: Vectors | None = None,
        *,
        learned: Sequence[str] | None = None,
    ) -> dict[str, Metric]:
        """Return the figures of some texts that are not the reference itself.

        Args:
            texts: What is measured.
            vectors: One for each, (N, D), L2-normalized.
            learned: All that a student learns from, where that is known and none of it is of the
                reference: ``surprise`` is then that of the whole reference for who learned it all.
        """
        figures = self._figures(texts, vectors)
        if vectors is not None and self._half is not None:
            figures["coverage"] = _cover(vectors, self._half)
        if learned is None:
            drawn = self._draw(texts, self._learnable)
            figures["surprise"] = self._surprise(drawn, self._reference[1::2])
        else:
            drawn = self._draw(learned, _MOST_LEARNED)
            figures["surprise"] = self._surprise(drawn, self._reference)
        return figures

    def measure_reference(
        self, reference: Sequence[str], vectors: Vectors | None = None
    ) -> dict[str, Metric]:
        """Return the reference's own figures.

        Tail and coverage are those of its other half; so is surprise, after the first. The half is
        no larger than a draw, so that draws of it are all alike: the tail's interval is that of
        texts drawn anew.
        """
        figures = self._figures(reference, vectors)
        if "tail" in figures:
            figures["tail"] = self._tail_of(reference[1::2])
        if vectors is not None and self._half is not None:
            figures["coverage"] = _cover(vectors[1::2], self._half)
        figures["surprise"] = self._surprise(
            self._draw(reference[::2], _MOST_LEARNED), self._reference[1::2]
        )
        return figures

    def _tail_of(self, half: Sequence[str]) -> Metric:
        cut = [one for one in map(words, half) if one]
        return bootstrap(
            [tail_share([one], self.tail) / self.mass for one in cut],
            weights=[len(one) for one in cut],
            resamples=_RESAMPLES,
            seed=self.seed,
            name="tail",
        )

    def _draw(self, texts: Sequence[str], characters: int) -> list[str]:
        """Return texts in drawn order, until there are so many characters."""
        order = np.random.default_rng(self.seed).permutation(len(texts)).tolist()
        return _take([texts[at] for at in order], min(characters, _MOST_LEARNED))

    def _surprise(self, learned: Sequence[str], read: Sequence[str]) -> Metric:
        model = CharacterModel(learned)
        told = _take(read, _MOST_READ)
        sizes = [len(text) + 1 for text in told]  # the end is to be foreseen, too
        metric = bootstrap(
            [model.bits(text) / size for text, size in zip(told, sizes, strict=True)],
            weights=sizes,
            resamples=_RESAMPLES,
            seed=self.seed,
            name="surprise",
            unit="bits/character",
        )
        return replace(metric, n=min(metric.n, len(learned)))

    def _figures(self, texts: Sequence[str], vectors: Vectors | None) -> dict[str, Metric]:
        return measure_diversity(
            texts,
            budget=self.budget,
            tail=self.tail,
            tail_mass=self.mass,
            vectors=vectors,
            seed=self.seed,
            draws=self.draws,
        )


def text_budget(generations: Sequence[Sequence[str]]) -> int:
    """Return half the words that the smallest of several has."""
    return int(_SHARE * min(sum(len(words(text)) for text in one) for one in generations))


def find_warnings(
    name: str, figures: Mapping[str, Metric], base: Mapping[str, Metric], tolerance: float
) -> list[Warned]:
    """Return what has moved for the worse, beyond the tolerance and both intervals.

    What stands on too few records on either side is not judged: ``find_few`` names it.

    Args:
        name: Of the generation.
        figures: Its own.
        base: Those it is compared with.
        tolerance: Share of the base's value that may be lost.
    """
    warned = []
    for figure, metric in figures.items():
        first = base[figure]
        change = (metric.value - first.value) / first.value if first.value else 0.0
        is_worse = WORSE[figure] * change > tolerance
        if is_worse and _are_apart(metric, first) and not metric.is_few and not first.is_few:
            warned.append(Warned(name, figure, change))
    return warned


def find_few(figures: Mapping[str, Metric], base: Mapping[str, Metric]) -> list[str]:
    """Return the figures that are not judged, since they stand on too few records."""
    return [name for name, one in figures.items() if one.is_few or base[name].is_few]


def _take(texts: Sequence[str], characters: int) -> list[str]:
    """Return the first of some texts, until there are so many characters; at least one."""
    taken, held = [], 0
    for text in texts:
        if held >= characters:
            break
        taken.append(text)
        held += len(text)
    return taken


def _cover(rows: Vectors, half: Vectors) -> Metric:
    """Return how much of one half of the reference is covered by as many others."""
    covered = coverage(rows[: len(half)], half)
    metric = bootstrap(covered.astype(np.float64), name="coverage")
    return replace(metric, n=min(metric.n, len(rows)))


def _are_apart(one: Metric, other: Metric) -> bool:
    """Say whether two intervals do not meet; what has none is taken as it is."""
    return not (one.low <= other.high and other.low <= one.high)
