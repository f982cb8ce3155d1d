"""What a sweep shows: the leaderboard, the best on questions that did not choose it, each change.

The questions are dealt in two. On the first part the best configuration is chosen; on the second,
which had no part in it, it is measured against the first configuration. Each change of one axis
alone is compared with the first on all questions, and the p-values are corrected for how many there
are (Holm). Knows no files.

Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stillroom.errors import DataError
from stillroom.evaluate import Metric, bootstrap, paired_difference
from stillroom.evaluate.metrics import correct_p_values, randomization_test
from stillroom.rag.measuring.sweep_settings import Configuration

__all__ = ["Change", "Cost", "Measured", "Outcome", "deal_questions", "judge_sweep"]

_FEWEST = 10
_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Cost:
    """What a configuration takes: a query's times, the index, and tokens a query that are asked."""

    cpu_ms: float
    p50_ms: float
    p95_ms: float
    index_bytes: int
    passages: int
    build_s: float
    embedded: int
    tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One configuration: its measure by question, and its cost."""

    configuration: Configuration
    values: Mapping[str, float]
    cost: Cost


@dataclass(frozen=True, slots=True)
class Change:
    """One configuration against the first on all questions; ``p`` is corrected.

    ``axes`` are what differs; ``verdict`` is ``gain``, ``loss`` or ``not shown``.
    """

    measured: Measured
    axes: tuple[str, ...]
    difference: Metric
    p: float
    verdict: str
    cpu_ms: float
    index_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the sweep shows; the leaderboard is of the questions that choose, best first.

    ``held_out`` and ``difference`` (from the first configuration) are of the others.
    """

    leaderboard: tuple[tuple[Measured, Metric], ...]
    best: Measured
    held_out: Metric
    first_held_out: Metric
    difference: Metric
    p: float
    is_gain: bool
    changes: tuple[Change, ...]
    choosing: int
    measuring: int


def judge_sweep(
    measured: Sequence[Measured], *, measure: str, held_out: float, seed: int = 0
) -> Outcome:
    """Choose the best configuration on some questions and measure it on the others.

    Args:
        measured: Every configuration on the same questions; the first is compared with.
        measure: The name of what was measured.
        held_out: The share of the questions that measure.
        seed: Of the dealing and the intervals.

    Raises:
        DataError: If either part has fewer than ten questions.
    """
    choosing, measuring = deal_questions(list(measured[0].values), held_out, seed)
    board = [
        (one, _mean(one, choosing, f"choosing/{one.configuration.name}", seed)) for one in measured
    ]
    board.sort(key=lambda pair: -pair[1].value)  # stable: of equals the one that is listed first
    best, first = board[0][0], measured[0]
    ours, theirs = ([one.values[name] for name in measuring] for one in (best, first))
    difference = paired_difference(ours, theirs, seed=seed, name=f"difference/{measure}")
    return Outcome(
        tuple(board),
        best,
        _mean(best, measuring, f"held-out/{measure}", seed),
        _mean(first, measuring, f"first/{measure}", seed),
        difference,
        randomization_test(ours, theirs, seed=seed),
        best is not first and difference.side() > 0,
        _compare(measured, seed),
        len(choosing),
        len(measuring),
    )


def deal_questions(names: Sequence[str], held_out: float, seed: int) -> tuple[list[str], list[str]]:
    """Return the questions that choose and those that measure.

    Raises:
        DataError: If either part has fewer than ten questions.
    """
    dealt = list(names)
    random.Random(seed).shuffle(dealt)
    count = round(len(dealt) * held_out)
    choosing, measuring = dealt[count:], dealt[:count]
    if min(len(measuring), len(choosing)) < _FEWEST:
        raise DataError(
            f"{len(choosing)} questions would choose and {len(measuring)} measure",
            code="rag.too-few-queries",
            expected=f"at least {_FEWEST} of each; some hundred to tell configurations apart",
            next="judge more questions, or set sweep.held_out",
        )
    return choosing, measuring


def _compare(measured: Sequence[Measured], seed: int) -> tuple[Change, ...]:
    """Compare every configuration with the first; changes of one axis come first."""
    first, *others = measured
    names = list(first.values)
    theirs = [first.values[name] for name in names]
    found = []
    for one in others:
        ours = [one.values[name] for name in names]
        metric = paired_difference(ours, theirs, seed=seed, name=one.configuration.name)
        found.append((one, metric, randomization_test(ours, theirs, seed=seed)))
    corrected = correct_p_values([p for _, _, p in found])
    changes = [
        Change(
            one,
            _differing(one.configuration, first.configuration),
            metric,
            p,
            _verdict(metric, p),
            one.cost.cpu_ms - first.cost.cpu_ms,
            one.cost.index_bytes - first.cost.index_bytes,
        )
        for (one, metric, _), p in zip(found, corrected, strict=True)
    ]
    return tuple(sorted(changes, key=lambda change: (len(change.axes), -change.difference.value)))


def _verdict(metric: Metric, p: float) -> str:
    if p >= _LEVEL:
        return "not shown"
    return "gain" if metric.value > 0 else "loss"


def _differing(one: Configuration, other: Configuration) -> tuple[str, ...]:
    return tuple(axis for axis, value in one.choices.items() if other.choices[axis] != value)


def _mean(one: Measured, names: Sequence[str], metric: str, seed: int) -> Metric:
    return bootstrap([one.values[name] for name in names], seed=seed, name=metric)
