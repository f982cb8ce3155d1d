"""From scores over time to what may be said of the whole: one way for faces and for sounds.

The whole's score is the mean of its runs' logits, and its chance what the calibration says of one
run with that score, no more: runs of one face or one recording are not independent, so that many of
them make no finding surer. It is withheld where there are reasons, or where a treatment that should
not matter turns it round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stillroom.forensics.detecting import Seen, TrainedDetector, turns_round
from stillroom.forensics.findings import Course

__all__ = ["Scores", "conclude"]

Floats = npt.NDArray[np.float64]
_TOP_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Scores:
    """What a detector made of one face or sound over time.

    ``rows`` are logits, (runs, views), the first view as it came; ``times`` in seconds;
    ``measures`` are what was measured of the first view, (runs, D) each.
    """

    times: list[float] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    measures: dict[str, list[Floats]] = field(default_factory=dict)

    def add(self, times: Sequence[float], seen: Seen) -> None:
        """Add what was seen of some runs, whose views follow each other.

        Args:
            times: Of the runs, (R,).
            seen: Of all their views, the first as it came.
        """
        views = len(seen.logits) // len(times)
        self.times.extend(times)
        self.rows.extend(seen.logits.reshape(len(times), views).tolist())
        for name, rows in seen.measures.items():
            self.measures.setdefault(name, []).extend(rows[::views])


def conclude(
    detector: TrainedDetector,
    face: int,
    scores: Scores,
    *,
    prevalence: float,
    reasons: Sequence[str],
    nothing: str,
    notes: Sequence[str] = (),
    is_video: bool = False,
) -> Course:
    """Return what may be said of one face of a clip, or of a sound.

    Args:
        detector: Whose scores they are.
        face: The face's number, 0 for a sound.
        scores: Over time; there may be none.
        prevalence: Share of forgeries among such files.
        reasons: Why no chance is given, if there are any.
        nothing: The reason where there is no score.
        notes: What was not looked at or heard.
        is_video: Whether the scores are of frames of video.
    """
    if not len(scores.rows):
        return Course(
            *(detector.name, detector.fingerprint, face, (), (), ()),
            *(0.0, 0.0, None, prevalence, (*reasons, nothing), tuple(notes)),
            learned=detector.about.learned,
        )
    calibrator, views = detector.about.calibrator, np.array(scores.rows)
    means, plain = views.mean(axis=0), views[:, 0]
    chances = calibrator.chances(means, prevalence)
    measures = {name: np.stack(rows) for name, rows in scores.measures.items()}
    strange = detector.find_strange(measures, is_video=is_video)
    against = (*reasons, *strange, *turns_round(chances))
    top = np.sort(plain)[-max(round(_TOP_SHARE * len(plain)), 1) :]
    return Course(
        detector.name,
        detector.fingerprint,
        face,
        tuple(scores.times),
        tuple(float(value) for value in plain),
        tuple(float(value) for value in calibrator.chances(plain, prevalence)),
        float(means[0]),
        float(top.mean()),
        None if against else float(chances[0]),
        prevalence,
        against,
        tuple(notes),
        detector.about.learned,
    )
