"""Detector results: DetectorFinding for one face, and TrackFinding over time.

Words and numbers alone: imports no network, so that pages and tables can show findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "UNCERTAIN_RANGE",
    "DetectorFinding",
    "TrackFinding",
    "TrainingSetInfo",
    "describe_probability",
]

UNCERTAIN_RANGE = (1 / 3, 2 / 3)
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class TrainingSetInfo:
    """The set that a detector learned from: its name, the digest over its files, how many."""

    name: str = ""
    digest: str = ""
    count: int = 0

    def line(self) -> str:
        """Return it as a clause."""
        if not self.digest:
            return f"learned from {self.name or 'a set that is not named'}"
        return f"learned from {self.name}, {self.count} in all, digest {self.digest[:12]}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class DetectorFinding:
    """What a detector makes of one face: chance of forged, or why none is given.

    ``chance`` is None where it is withheld; ``reasons`` then say why. ``box`` is the face's.
    """

    detector: str
    fingerprint: str
    box: tuple[int, int, int, int]
    logit: float
    chance: float | None
    prevalence: float
    reasons: tuple[str, ...] = ()
    map: tuple[tuple[float, ...], ...] = ()
    learned: TrainingSetInfo = field(default_factory=TrainingSetInfo)

    @property
    def is_indicated(self) -> bool:
        """Whether a chance is given and high."""
        return self.chance is not None and self.chance > UNCERTAIN_RANGE[1]

    @property
    def verdict(self) -> str:
        """What may be said, in one clause."""
        return describe_probability(self.chance, self.prevalence, self.reasons)

    def line(self) -> str:
        """Return the verdict with its detector and face."""
        x, y, width, height = self.box
        face = f"face of {width}x{height} at {x},{y}"
        return f"{self.detector} ({self.learned.line()}), {face}: {self.verdict}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "detector": self.detector,
            "fingerprint": self.fingerprint,
            "learned": self.learned.to_json(),
            "face": list(self.box),
            "verdict": self.verdict,
            "chance": self.chance,
            "prevalence": self.prevalence,
            "logit": self.logit,
            "reasons": list(self.reasons),
            "map": [list(row) for row in self.map],
        }


@dataclass(frozen=True)
class TrackFinding:
    """What a detector makes of one face of a clip over time.

    ``face`` is its number, 0 for a sound; ``times`` in seconds and ``logits`` are of each frame,
    or, for a head over time or a sound, of each run; ``chances`` are those logits' own;
    ``chance`` that of their mean, None where it is withheld for ``reasons``; ``top`` is the mean
    of the highest fifth; ``notes`` say what was not looked at or heard.
    """

    detector: str
    fingerprint: str
    face: int
    times: tuple[float, ...]
    logits: tuple[float, ...]
    chances: tuple[float, ...]
    logit: float
    top: float
    chance: float | None
    prevalence: float
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    learned: TrainingSetInfo = field(default_factory=TrainingSetInfo)

    @property
    def subject(self) -> str:
        """Who or what it is of, as ``face 1``."""
        return f"face {self.face}" if self.face else "sound"

    @property
    def verdict(self) -> str:
        """What may be said, in one clause."""
        return describe_probability(self.chance, self.prevalence, self.reasons)

    def line(self) -> str:
        """Return the verdict with its detector, its face, and the frames' chances as bars."""
        beside = f" ({'; '.join(self.notes)})" if self.notes else ""
        whose = f"{self.detector} ({self.learned.line()}), {self.subject}"
        if not self.times:
            return f"{whose}: {self.verdict}{beside}"
        bars = "".join(_BARS[round(chance * (len(_BARS) - 1))] for chance in self.chances)
        return (
            f"{whose}, {len(self.times)} scores from "
            f"{self.times[0]:.1f} to {self.times[-1]:.1f} s [{bars}]: {self.verdict}{beside}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "detector": self.detector,
            "fingerprint": self.fingerprint,
            "learned": self.learned.to_json(),
            "face": self.face or None,
            "verdict": self.verdict,
            "chance": self.chance,
            "prevalence": self.prevalence,
            "logit": self.logit,
            "top_fifth_logit": self.top,
            "times": [round(time, 3) for time in self.times],
            "logits": list(self.logits),
            "chances": list(self.chances),
            "reasons": list(self.reasons),
            "notes": list(self.notes),
        }


def describe_probability(chance: float | None, prevalence: float, reasons: Sequence[str]) -> str:
    """Return what may be said of a chance, or why none is given, in one clause."""
    if chance is None:
        return f"inconclusive: {'; '.join(reasons)}"
    at = f"chance {chance:.2f} where {prevalence:.3g} of such files are forged"
    low, high = UNCERTAIN_RANGE
    if chance > high:
        return f"indicates a forgery ({at})"
    if chance < low:
        return f"does not indicate a forgery of the kinds it knows ({at})"
    return f"inconclusive: neither likely nor unlikely ({at})"
