"""Detectors before a clip: each face scored in every frame that is looked at, and over time.

What is said of a face is said by ``concluding``. The clip's finding is that of its strongest face.
Squares about faces are scored as they come and let go, so memory does not grow with the clip. A
detector over time is shown no frames that lie seconds apart, but runs of frames in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stillroom.forensics.bursts import MOST_FACES, Burst, choose_faces, read_bursts
from stillroom.forensics.clips import Clip
from stillroom.forensics.concluding import Scores, conclude
from stillroom.forensics.detecting import TrainedDetector
from stillroom.forensics.face import Image
from stillroom.forensics.faces import Detection, FaceFinder, crop_square, square_side
from stillroom.forensics.findings import Course
from stillroom.forensics.looks import is_grey
from stillroom.forensics.scanning import Track
from stillroom.forensics.treatments import compress, rescale

__all__ = ["Witness"]

_AT_ONCE = 8
_CODED = "h264"


@dataclass
class _Record:
    """What is kept of one face before one detector: scores, sizes, in how many frames colour."""

    scores: Scores = field(default_factory=Scores)
    sizes: list[float] = field(default_factory=list)
    waiting: list[Image] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    seen: int = 0
    coloured: int = 0


class Witness:
    """Is shown each face of a clip as a scan finds it, and says in the end what detectors make."""

    def __init__(
        self, detectors: Sequence[TrainedDetector], finder: FaceFinder, prevalence: float
    ) -> None:
        """Stand over detectors of faces; ``finder`` gives landmarks."""
        self._detectors, self._finder, self._prevalence = tuple(detectors), finder, prevalence
        self._records: dict[tuple[int, int], _Record] = {}
        self._read: set[int] = set()

    def see(self, track: int, time: float, image: Image, face: Detection) -> None:
        """Take in one face of one frame.

        Args:
            track: Number of the face's track.
            time: The frame's, in seconds.
            image: The frame, RGB (H, W, 3).
            face: As it was found in it.
        """
        landmarks = self._finder.landmarks(image, face)
        is_coloured = not is_grey(image)
        for at, detector in enumerate(self._detectors):
            about = detector.about
            record = self._records.setdefault((track, at), _Record())
            record.sizes.append(square_side(landmarks, about.margin))
            record.seen += 1
            record.coloured += is_coloured
            if about.method.looks_at > 1:
                continue  # it is shown frames in a row, by ``watch``
            square, _ = crop_square(image, landmarks, about.size, margin=about.margin)
            record.waiting.append(square)
            record.times.append(time)
            if len(record.waiting) == _AT_ONCE:
                _flush(detector, record)

    def watch(self, clip: Clip, tracks: Sequence[Track]) -> None:
        """Show detectors over time some runs of frames in a row of the faces that were found.

        Args:
            clip: The clip that is scanned.
            tracks: Its faces.
        """
        heads = {
            at: detector.about.method.looks_at
            for at, detector in enumerate(self._detectors)
            if detector.about.method.looks_at > 1
        }
        chosen = choose_faces(tracks)
        self._read = {track.number for track in chosen}
        for frames in sorted(set(heads.values())):
            for burst in read_bursts(clip, chosen, frames, self._finder):
                for at, looks_at in heads.items():
                    record = self._records.get((burst.track, at))
                    if looks_at == frames and record is not None:
                        self._judge_run(self._detectors[at], record, burst)

    def _judge_run(self, detector: TrainedDetector, record: _Record, burst: Burst) -> None:
        """Score a run of frames of one face, in the same three views as pictures."""
        about = detector.about
        squares = [
            crop_square(
                image, self._finder.landmarks(image, face), about.size, margin=about.margin
            )[0]
            for image, face in zip(burst.images, burst.faces, strict=True)
        ]
        views = [
            np.stack(squares),
            np.stack([compress(frame, 75) for frame in squares]),
            np.stack([rescale(frame, 0.75) for frame in squares]),
        ]
        record.scores.add([burst.times[0]], detector.see(views))

    def courses(self, bits_per_pixel: float, codec: str = "") -> tuple[Course, ...]:
        """Return what each detector makes of each face, in the faces' order.

        Args:
            bits_per_pixel: Of the clip's video; 0 if it is not known.
            codec: Its decoder's name; empty if it is not known.
        """
        found = []
        for (track, at), record in sorted(self._records.items()):
            detector = self._detectors[at]
            if detector.about.method.looks_at == 1:
                _flush(detector, record)
            found.append(self._conclude(track, detector, record, bits_per_pixel, codec))
        return tuple(found)

    def _conclude(
        self,
        track: int,
        detector: TrainedDetector,
        record: _Record,
        bits_per_pixel: float,
        codec: str,
    ) -> Course:
        frames, side = detector.about.method.looks_at, float(np.median(record.sizes))
        reasons = [*detector.doubts(side, None), *_doubt_coding(detector, bits_per_pixel, codec)]
        if (domain := detector.about.domain) is not None:
            colours = "colour" if 2 * record.coloured > record.seen else "grey"
            wide = min(side, detector.about.size)
            reasons += domain.known.doubts(colours=colours, wide=wide, unit="px about a face")
        few = f"seen in {record.seen} frames of one face, fewer than the {frames} it looks at"
        if record.seen >= frames:
            few = f"no {frames} frames in a row show the face"
            if track not in self._read:
                few = f"not one of the {MOST_FACES} widest faces, which are read frame by frame"
        return conclude(
            detector,
            track + 1,
            record.scores,
            prevalence=self._prevalence,
            reasons=reasons,
            nothing=few,
            is_video=True,
        )


def _flush(detector: TrainedDetector, record: _Record) -> None:
    """Score waiting pictures: each as it is, saved again, and reduced and enlarged."""
    if not record.waiting:
        return
    views = [
        view
        for image in record.waiting
        for view in (image, compress(image, 75), rescale(image, 0.75))
    ]
    record.scores.add(record.times, detector.see(views))
    record.waiting, record.times = [], []


def _doubt_coding(detector: TrainedDetector, bits_per_pixel: float, codec: str) -> list[str]:
    """Return why frames of this clip lie outside of what the detector was shown to work on."""
    figure = dict(detector.about.figures).get("auc", {}).get(_CODED)
    if figure is None:
        return ["what it makes of frames of video was not measured"]
    if not figure.get("low") or figure["low"] <= 0.5:
        return ["after H.264 it was not shown to tell forged from real"]
    if codec not in {"", _CODED}:
        return [f"coded as {codec}, and of video it was tried on H.264 alone"]
    if 0 < bits_per_pixel < _LEAST_BITS:
        return [f"strongly compressed video ({bits_per_pixel:.3f} bits a pixel)"]
    return []


_LEAST_BITS = 0.02  # below what a rate factor of 28 takes for a talking head
