"""Runs of frames that follow each other, of faces that a scan found: what heads over time look at.

A scan looks at frames seconds apart. What a detector over time learned lies between one frame and
the next, so that for it a few places of a clip are read frame by frame. A run that loses its face,
or is shorter than asked, is given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.errors import DataError
from stillroom.forensics.clips import Clip, space_frames
from stillroom.forensics.face import Image
from stillroom.forensics.faces import Detection, FaceFinder
from stillroom.forensics.scanning import Box, Sight, Track, measure_likeness

__all__ = ["MOST_FACES", "Burst", "choose_faces", "read_bursts"]

MOST_FACES = 4
_PLACES = 4
_RATE = 25.0  # frames a second, where a clip does not say


@dataclass(frozen=True, eq=False)
class Burst:
    """Frames in a row, each with the face of one track in it."""

    track: int
    times: tuple[float, ...]
    images: tuple[Image, ...]
    faces: tuple[Detection, ...]


def choose_faces(tracks: Sequence[Track]) -> tuple[Track, ...]:
    """Return the widest faces of a scan, as many as are read frame by frame."""
    return tuple(sorted(tracks, key=lambda one: -one.width)[:MOST_FACES])


def read_bursts(
    clip: Clip, tracks: Sequence[Track], frames: int, finder: FaceFinder
) -> Iterator[Burst]:
    """Yield up to four runs of each face, evenly over when it is seen.

    Decodes from the keyframe before each place on.

    Args:
        clip: As ``open_clip`` gives it.
        tracks: The faces, as ``choose_faces`` chooses them.
        frames: How many frames make a run.
        finder: Finds faces.
    """
    for track in tracks:
        for sight in _choose_places(track, frames / (clip.rate or _RATE)):
            burst = _read(clip, track, sight, frames, finder)
            if burst is not None:
                yield burst


def _choose_places(track: Track, seconds: float) -> list[Sight]:
    """Return sights that runs begin at, so far apart that no two runs overlap."""
    count = len(track.sights)
    picked = {round(at) for at in np.linspace(0, count - 1, min(_PLACES, count) + 1)[:-1]}
    found: list[Sight] = []
    for at in sorted(picked):
        if not found or track.sights[at].time - found[-1].time >= seconds:
            found.append(track.sights[at])
    return found


def _read(clip: Clip, track: Track, sight: Sight, frames: int, finder: FaceFinder) -> Burst | None:
    length = frames / (clip.rate or _RATE)
    begin = max(min(sight.time, clip.duration - length), 0.0)
    times: list[float] = []
    images: list[Image] = []
    faces: list[Detection] = []
    box = sight.box
    try:
        for frame in space_frames(clip, frames, exact=True, within=(begin, begin + length)):
            face = _follow(box, finder.find(frame.image))
            if face is None:
                return None
            box = face.box
            times.append(frame.time)
            images.append(frame.image)
            faces.append(face)
    except DataError:
        return None  # nothing can be read there; how many runs were read stands with the finding
    if len(times) < frames:
        return None
    return Burst(track.number, tuple(times), tuple(images), tuple(faces))


def _follow(box: Box, found: Sequence[Detection]) -> Detection | None:
    """Return the face that lies where the last one did."""
    best = max(found, key=lambda face: measure_likeness(box, face.box), default=None)
    return best if best is not None and measure_likeness(box, best.box) > 0 else None
