"""The curves of a fidelity report: reliability, divergence along a text, the losses of training.

Knows what was measured of each model, and the metrics that training left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillroom.distill.fidelity import Side
from stillroom.evaluate.calibration import BINS
from stillroom.evaluate.curves import Curves, Series

__all__ = ["depth_curves", "read_losses", "reliability_curves", "training_curves"]

_POINTS = 48
_SCALED = "student, scaled"
_STYLES = {"student": 0, "control": 1, "start": 2, "teacher": 3, _SCALED: 4}


def reliability_curves(
    sides: Mapping[str, Side], names: Mapping[str, str], scaled: str
) -> list[Curves]:
    """Return what was said against what came true, by model.

    Args:
        sides: By name.
        names: Of those to be drawn, as people read them, in order.
        scaled: The side that is drawn once more after its temperature was fitted.
    """
    series = [
        _reliability(label, sides[name].bins) for name, label in names.items() if name in sides
    ]
    half = [np.array(row.bins) for row in sides[scaled].scaled]
    if half:
        series.append(_reliability(_SCALED, np.array(half)))
    return [
        Curves(
            "Reliability: of the tokens to which a model gave about so much, the share that came. "
            "On the dotted line it is calibrated, below it is too sure; larger dots stand on more "
            "tokens. The scaled student is drawn on every second record.",
            "largest probability said",
            "share that came true",
            tuple(series),
            diagonal=True,
        )
    ]


def _reliability(name: str, bins: npt.NDArray[np.float64]) -> Series:
    count, said, came = bins.reshape(-1, 3, BINS).sum(0)
    full = np.flatnonzero(count)
    return Series(
        name,
        tuple((float(said[at] / count[at]), float(came[at] / count[at])) for at in full),
        tuple(float(count[at]) for at in full),
        _STYLES.get(name),
    )


def depth_curves(sides: Mapping[str, Side], names: Mapping[str, str]) -> list[Curves]:
    """Return KL(teacher ‖ model) by place in the answer; none where no teacher stood beside."""
    series = []
    for name, label in names.items():
        pairs = sides[name].depth if name in sides else ()
        places = [1.0, *(0.75 * 2.0**at + 0.5 for at in range(1, len(pairs)))]  # middles of runs
        points = [
            (place, total / count)
            for place, (total, count) in zip(places, pairs, strict=False)
            if count
        ]
        weights = tuple(count for _, count in pairs if count)
        series.append(Series(label, tuple(points), weights, _STYLES.get(label)))
    if not any(len(one.points) > 1 for one in series):
        return []
    return [
        Curves(
            "KL(teacher ‖ model) along the held-out answers, in runs that double; larger dots "
            "stand on more tokens.",
            "token of the answer",
            "nats a token",
            tuple(series),
            is_log=True,
        )
    ]


def read_losses(file: Path, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Return the value of some metrics after each step; of a step done twice, the last.

    Args:
        file: ``metrics.jsonl`` of a job.
        names: Of metrics.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in names}
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("name") in found:
                found[row["name"]][int(row["step"])] = float(row["value"])
    return {name: sorted(steps.items()) for name, steps in found.items()}


def training_curves(losses: Mapping[str, Sequence[tuple[int, float]]]) -> list[Curves]:
    """Return the losses of training by step, several steps to a point where there are many.

    Args:
        losses: By what they are called, (step, value).
    """
    series = []
    for name, points in losses.items():
        width = max(-(-len(points) // _POINTS), 1)
        runs = [points[at : at + width] for at in range(0, len(points), width)]
        means = tuple(
            (float(np.mean([x for x, _ in run])), float(np.mean([y for _, y in run])))
            for run in runs
        )
        series.append(Series(name, means))
    if not any(len(one.points) > 1 for one in series):
        return []
    return [
        Curves(
            "Training: the loss that each one lowered. They are different losses, so that only the "
            "course of each tells something.",
            "optimizer step",
            "loss",
            tuple(series),
        )
    ]
