"""Detector results: DetectorFinding for one face, and TrackFinding over time.

Imports no network, so that pages and tables can show findings.
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
    """The training set of a detector: name, digest over its files, size."""

    name: str = ""
    digest: str = ""
    count: int = 0

    def line(self) -> str:
        """Format as a clause."""
        if not self.digest:
            return f"learned from {self.name or 'a set that is not named'}"
        return f"learned from {self.name}, {self.count} in all, digest {self.digest[:12]}"

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return asdict(self)


@dataclass(frozen=True)
class DetectorFinding:
    """Result of a detector for one face: the probability of forged, or reasons for none.

    ``chance`` is None where it is withheld for ``reasons``. ``box`` is the face's.
    """

    detector: str
    fingerprint: str
    box: tuple[int, int, int, int]
    logit: float
    chance: float | None
    prevalence: float
    reasons: tuple[str, ...] = ()
    map: tuple[tuple[float, ...], ...] = ()
    training_set: TrainingSetInfo = field(default_factory=TrainingSetInfo)

    @property
    def is_indicated(self) -> bool:
        """Whether a probability is given and high."""
        return self.chance is not None and self.chance > UNCERTAIN_RANGE[1]

    @property
    def verdict(self) -> str:
        """The conclusion, as one clause."""
        return describe_probability(self.chance, self.prevalence, self.reasons)

    def line(self) -> str:
        """Format as one line with detector and face."""
        x, y, width, height = self.box
        face = f"face of {width}x{height} at {x},{y}"
        return f"{self.detector} ({self.training_set.line()}), {face}: {self.verdict}"

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "detector": self.detector,
            "fingerprint": self.fingerprint,
            "learned": self.training_set.to_json(),
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
    """Result of a detector for one face of a clip over time, or for audio.

    ``face`` is its number, 0 for audio; ``times`` in seconds, ``logits`` and ``chances`` are per
    frame, or per segment for a temporal head and for audio; ``chance`` is the probability of the
    mean logit, None where it is withheld for ``reasons``; ``top`` is the mean of the highest fifth;
    ``notes`` describe parts that were not scored.
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
    training_set: TrainingSetInfo = field(default_factory=TrainingSetInfo)

    @property
    def subject(self) -> str:
        """What was scored, such as ``face 1``."""
        return f"face {self.face}" if self.face else "sound"

    @property
    def verdict(self) -> str:
        """The conclusion, as one clause."""
        return describe_probability(self.chance, self.prevalence, self.reasons)

    def line(self) -> str:
        """Format as one line with detector, face, and the probabilities over time as bars."""
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        subject = f"{self.detector} ({self.training_set.line()}), {self.subject}"
        if not self.times:
            return f"{subject}: {self.verdict}{notes}"
        bars = "".join(_BARS[round(chance * (len(_BARS) - 1))] for chance in self.chances)
        return (
            f"{subject}, {len(self.times)} scores from "
            f"{self.times[0]:.1f} to {self.times[-1]:.1f} s [{bars}]: {self.verdict}{notes}"
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "detector": self.detector,
            "fingerprint": self.fingerprint,
            "learned": self.training_set.to_json(),
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
    """Return the conclusion from a probability, or the reasons for none, as one clause."""
    if chance is None:
        return f"inconclusive: {'; '.join(reasons)}"
    condition = f"chance {chance:.2f} where {prevalence:.3g} of such files are forged"
    low, high = UNCERTAIN_RANGE
    if chance > high:
        return f"indicates a forgery ({condition})"
    if chance < low:
        return f"does not indicate a forgery of the kinds it knows ({condition})"
    return f"inconclusive: neither likely nor unlikely ({condition})"
