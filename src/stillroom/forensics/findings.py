"""What detectors say: of one face of a picture (``Finding``), of one face over time (``Course``).

Words and numbers alone: imports no network, so that pages and tables can show findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["UNSURE", "Course", "Finding", "name_chance"]

UNSURE = (1 / 3, 2 / 3)
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Finding:
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

    @property
    def is_indicated(self) -> bool:
        """Whether a chance is given and high."""
        return self.chance is not None and self.chance > UNSURE[1]

    @property
    def verdict(self) -> str:
        """What may be said, in one clause."""
        return name_chance(self.chance, self.prevalence, self.reasons)

    def line(self) -> str:
        """Return the verdict with its detector and face."""
        x, y, width, height = self.box
        return f"{self.detector}, face of {width}x{height} at {x},{y}: {self.verdict}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "detector": self.detector,
            "fingerprint": self.fingerprint,
            "face": list(self.box),
            "verdict": self.verdict,
            "chance": self.chance,
            "prevalence": self.prevalence,
            "logit": self.logit,
            "reasons": list(self.reasons),
            "map": [list(row) for row in self.map],
        }


@dataclass(frozen=True)
class Course:
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

    @property
    def subject(self) -> str:
        """Who or what it is of, as ``face 1``."""
        return f"face {self.face}" if self.face else "sound"

    @property
    def verdict(self) -> str:
        """What may be said, in one clause."""
        return name_chance(self.chance, self.prevalence, self.reasons)

    def line(self) -> str:
        """Return the verdict with its detector, its face, and the frames' chances as bars."""
        beside = f" ({'; '.join(self.notes)})" if self.notes else ""
        if not self.times:
            return f"{self.detector}, {self.subject}: {self.verdict}{beside}"
        bars = "".join(_BARS[round(chance * (len(_BARS) - 1))] for chance in self.chances)
        return (
            f"{self.detector}, {self.subject}, {len(self.times)} scores from "
            f"{self.times[0]:.1f} to {self.times[-1]:.1f} s [{bars}]: {self.verdict}{beside}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "detector": self.detector,
            "fingerprint": self.fingerprint,
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


def name_chance(chance: float | None, prevalence: float, reasons: Sequence[str]) -> str:
    """Return what may be said of a chance, or why none is given, in one clause."""
    if chance is None:
        return f"inconclusive: {'; '.join(reasons)}"
    at = f"chance {chance:.2f} where {prevalence:.3g} of such files are forged"
    low, high = UNSURE
    if chance > high:
        return f"indicates a forgery ({at})"
    if chance < low:
        return f"does not indicate a forgery of the kinds it knows ({at})"
    return f"inconclusive: neither likely nor unlikely ({at})"
