"""Detectors before a picture: each face judged by each detector, no finding mixed with another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from stillroom.forensics.clip_judging import Witness
from stillroom.forensics.detecting import TrainedDetector
from stillroom.forensics.explaining import draw_maps, has_maps
from stillroom.forensics.face import Image
from stillroom.forensics.faces import Detection, FaceFinder, crop_square, square_side
from stillroom.forensics.findings import Course, Finding
from stillroom.forensics.listening import listen
from stillroom.forensics.pictures import Picture
from stillroom.forensics.sounds import Sound

__all__ = ["Judges", "open_judges"]

_GRID = 16


@dataclass(frozen=True)
class Judges:
    """Detectors with what they share: who finds faces, at which prevalence chances are told."""

    detectors: tuple[TrainedDetector, ...]
    finder: FaceFinder
    prevalence: float = 0.5
    with_maps: bool = False

    @property
    def blind(self) -> tuple[str, ...]:
        """What each detector cannot see, a sentence each, under its name."""
        return tuple(
            f"{detector.name}: {line}"
            for detector in self.detectors
            for line in detector.about.blind
        )

    def judge(self, picture: Picture) -> tuple[Finding, ...]:
        """Return what each detector makes of each face; empty where there is no face."""
        found: list[Finding] = []
        for face in self.finder.find(picture.image):
            landmarks = self.finder.landmarks(picture.image, face)
            for detector in self.detectors:
                if detector.about.method.looks_at > 1 or detector.about.method.hears:
                    continue  # nothing to say of one picture
                about = detector.about
                square, _ = crop_square(picture.image, landmarks, about.size, margin=about.margin)
                said = detector.judge(
                    square,
                    box=_box_of(face),
                    face_pixels=square_side(landmarks, about.margin),
                    jpeg_quality=picture.jpeg_quality,
                    coding=picture.coding,
                    prevalence=self.prevalence,
                )
                found.append(self._with_map(detector, square, said))
        return tuple(found)

    def witness(self) -> Witness:
        """Return who is shown the faces of one clip."""
        eyes = [one for one in self.detectors if not one.about.method.hears]
        return Witness(eyes, self.finder, self.prevalence)

    def listen(self, path: Path, sound: Sound) -> tuple[Course, ...]:
        """Return what each detector that hears makes of a recording or a clip's sound.

        Raises:
            DataError: If nothing of it can be decoded.
        """
        ears = [one for one in self.detectors if one.about.method.hears]
        return listen(ears, path, sound, self.prevalence)

    def _with_map(self, detector: TrainedDetector, square: Image, said: Finding) -> Finding:
        """Add the map where the finding indicates a forgery; of anything else none is shown."""
        if not self.with_maps or not said.is_indicated or not has_maps(detector):
            return said
        full = draw_maps(detector, [square])[0]
        edges = np.linspace(0, full.shape[0], _GRID + 1).astype(int)
        rows = tuple(
            tuple(round(float(full[y0:y1, x0:x1].mean()), 3) for x0, x1 in pairwise(edges))
            for y0, y1 in pairwise(edges)
        )
        return replace(said, map=rows)


def open_judges(
    paths: Sequence[Path], *, prevalence: float = 0.5, with_maps: bool = False
) -> Judges:
    """Open detectors and the finder of faces.

    Raises:
        CheckpointError: If one is no detector.
        MissingExtraError: If the packages for faces or networks are not here.
    """
    opened = tuple(TrainedDetector.open(path) for path in paths)
    return Judges(opened, FaceFinder(), prevalence, with_maps)


def _box_of(face: Detection) -> tuple[int, int, int, int]:
    x, y, width, height = (round(part) for part in face.box)
    return x, y, width, height
