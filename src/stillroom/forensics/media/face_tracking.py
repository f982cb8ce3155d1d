"""Face tracks across sampled video frames, and runs of consecutive face frames.

Source: tracks by overlap of boxes, as Bochinski et al. 2017, "High-speed tracking-by-detection
without using image information" (IoU tracker); shots by correlation of colour histograms.

A scan looks at frames seconds apart. What a detector over time learned lies between one frame and
the next, so that for it a few places of a clip are read frame by frame. A run that loses its face,
or is shorter than asked, is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.forensics.media.face import Image
from stillroom.forensics.media.face_detection import FaceDetection, FaceFinder
from stillroom.forensics.media.video import Clip, Frame, sample_frames

__all__ = [
    "MAX_FACES",
    "Box",
    "FaceObservation",
    "FaceTrack",
    "FrameSequence",
    "VideoScan",
    "measure_overlap",
    "read_frame_sequences",
    "scan_clip",
    "select_faces",
]


_OVERLAP = 0.2


_NEAR = 0.8  # of a face's width: how far it may move between frames that are apart in time


_SAME_SHOT = 0.5


_SIDE = 96


_MAX_CROPS = 6


_SMALL = 64


_STRIP = 160


Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class FaceObservation:
    """A face in one frame: the time in seconds, its box, the detector's score."""

    time: float
    box: Box
    score: float


@dataclass
class FaceTrack:
    """One face over time; ``crops`` are some small pictures of it, evenly over what was seen."""

    shot: int
    number: int = 0
    sights: list[FaceObservation] = field(default_factory=list)
    crops: list[Image] = field(default_factory=list)
    stride: int = 1

    def add(self, sight: FaceObservation, image: Image) -> None:
        """Add a sight; of every ``stride`` sights one picture is kept, and half of them if many."""
        if len(self.sights) % self.stride == 0:
            self.crops.append(_cut(image, sight.box))
            if len(self.crops) > _MAX_CROPS:
                self.crops, self.stride = self.crops[::2], 2 * self.stride
        self.sights.append(sight)

    @property
    def width(self) -> float:
        """Median width of the face in pixels."""
        return float(np.median([sight.box[2] for sight in self.sights]))

    def line(self) -> str:
        """Return the track as one line."""
        first, last = self.sights[0], self.sights[-1]
        return (
            f"{first.time:.1f} to {last.time:.1f} s, seen in {len(self.sights)} frames, "
            f"{self.width:.0f} pixels wide"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "face": self.number + 1,
            "shot": self.shot,
            "width": round(self.width, 1),
            "sights": [
                {
                    "time": round(sight.time, 3),
                    "box": [round(part, 1) for part in sight.box],
                    "score": round(sight.score, 3),
                }
                for sight in self.sights
            ],
        }


@dataclass
class VideoScan:
    """What was seen of a clip: frames looked at, shots, tracks; ``strip`` are small frames."""

    times: list[float] = field(default_factory=list)
    shots: int = 0
    tracks: list[FaceTrack] = field(default_factory=list)
    strip: list[tuple[float, Image]] = field(default_factory=list)

    def limits(self) -> tuple[str, ...]:
        """Return what limits a judgement of the faces."""
        small = [track for track in self.tracks if track.width < _SMALL]
        found = []
        if small:
            found.append(f"{len(small)} of {len(self.tracks)} faces are below {_SMALL} pixels")
        brief = [track for track in self.tracks if len(track.sights) < 2]
        if brief:
            found.append(f"{len(brief)} faces were seen in one frame alone")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "times": [round(time, 3) for time in self.times],
            "shots": self.shots,
            "tracks": [track.to_json() for track in self.tracks],
        }


def scan_clip(
    clip: Clip,
    *,
    count: int = 32,
    finder: FaceFinder | None = None,
    look: Callable[[Image], None] | None = None,
    see: Callable[[int, float, Image, FaceDetection], None] | None = None,
) -> VideoScan:
    """Find the faces of a clip in evenly spaced frames, and join them into tracks.

    Args:
        clip: As ``open_clip`` gives it.
        count: How many frames are looked at.
        finder: Finds faces; default a new one.
        look: Is shown every frame that is looked at, so that none is decoded twice.
        see: Is shown every face: its track's number, the time, the frame, and where it is.

    Raises:
        DataError: If the clip has no frame.
        MissingExtraError: If no face detector is here.
    """
    finder = finder or FaceFinder()
    scan, before = VideoScan(), None
    alive: list[FaceTrack] = []
    for number, frame in enumerate(sample_frames(clip, count)):
        if look is not None:
            look(frame.image)
        colours = _histogram(frame.image)
        if before is None or cv2.compareHist(before, colours, cv2.HISTCMP_CORREL) < _SAME_SHOT:
            scan.shots += 1
            alive = []
        before = colours
        scan.times.append(frame.time)
        if number % max(count // 8, 1) == 0:
            scan.strip.append((frame.time, _reduce(frame.image, _STRIP)))
        found = finder.find(frame.image)
        alive, of = _assign_to_tracks(scan, alive, frame, found)
        if see is not None:
            for at, face in enumerate(found):
                see(of[at].number, frame.time, frame.image, face)
    return scan


def _assign_to_tracks(
    scan: VideoScan, alive: Sequence[FaceTrack], frame: Frame, found: Sequence[FaceDetection]
) -> tuple[list[FaceTrack], dict[int, FaceTrack]]:
    """Give each found face to the nearest track that is free; what is left begins a new one.

    Returns:
        The tracks that go on, and the track of each found face by its place.
    """
    pairs = sorted(
        (
            (measure_overlap(track.sights[-1].box, face.box), at, number)
            for at, track in enumerate(alive)
            for number, face in enumerate(found)
        ),
        reverse=True,
    )
    of: dict[int, FaceTrack] = {}
    taken: set[int] = set()
    for likeness, at, number in pairs:
        if likeness > 0 and at not in taken and number not in of:
            taken.add(at)
            of[number] = alive[at]
    for number, face in enumerate(found):
        track = of.get(number)
        if track is None:
            track = of[number] = FaceTrack(scan.shots, len(scan.tracks))
            scan.tracks.append(track)
        track.add(FaceObservation(frame.time, face.box, face.score), frame.image)
    return [*of.values(), *(track for at, track in enumerate(alive) if at not in taken)], of


def measure_overlap(one: Box, other: Box) -> float:
    """Return the overlap of two boxes, or a little where they lie near; 0 for different faces."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right = min(one[0] + one[2], other[0] + other[2])
    bottom = min(one[1] + one[3], other[1] + other[3])
    both = max(right - left, 0) * max(bottom - top, 0)
    overlap = both / max(one[2] * one[3] + other[2] * other[3] - both, 1e-9)
    if overlap >= _OVERLAP:
        return overlap
    width = min(one[2], other[2])
    gap = np.hypot(
        one[0] + one[2] / 2 - other[0] - other[2] / 2,
        one[1] + one[3] / 2 - other[1] - other[3] / 2,
    )
    alike = 0.5 < one[2] / max(other[2], 1e-9) < 2
    return 0.1 * (1 - float(gap) / (_NEAR * width)) if alike and gap < _NEAR * width else 0.0


def _histogram(image: Image) -> npt.NDArray[np.float32]:
    small = cv2.resize(image, (64, 36), interpolation=cv2.INTER_AREA)
    hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV)
    counts = cv2.calcHist([hsv], [0, 1], None, [16, 8], [0, 180, 0, 256])
    return np.asarray(cv2.normalize(counts, counts), dtype=np.float32)


def _reduce(image: Image, width: int) -> Image:
    share = width / image.shape[1]
    size = width, max(round(image.shape[0] * share), 1)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _cut(image: Image, box: Box) -> Image:
    x, y, width, height = box
    side = 1.4 * max(width, height)
    left, top = int(x + width / 2 - side / 2), int(y + height / 2 - side / 2)
    part = image[max(top, 0) : int(top + side), max(left, 0) : int(left + side)]
    if part.size == 0:
        return np.zeros((_SIDE, _SIDE, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(part, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.uint8)


MAX_FACES = 4


_PLACES = 4


_FRAME_RATE = 25.0  # frames a second, where a clip does not say


@dataclass(frozen=True, eq=False)
class FrameSequence:
    """Frames in a row, each with the face of one track in it."""

    track: int
    times: tuple[float, ...]
    images: tuple[Image, ...]
    faces: tuple[FaceDetection, ...]


def select_faces(tracks: Sequence[FaceTrack]) -> tuple[FaceTrack, ...]:
    """Return the widest faces of a scan, as many as are read frame by frame."""
    return tuple(sorted(tracks, key=lambda one: -one.width)[:MAX_FACES])


def read_frame_sequences(
    clip: Clip, tracks: Sequence[FaceTrack], frames: int, finder: FaceFinder
) -> Iterator[FrameSequence]:
    """Yield up to four runs of each face, evenly over when it is seen.

    Decodes from the keyframe before each place on.

    Args:
        clip: As ``open_clip`` gives it.
        tracks: The faces, as ``select_faces`` chooses them.
        frames: How many frames make a run.
        finder: Finds faces.
    """
    for track in tracks:
        for sight in _select_starts(track, frames / (clip.rate or _FRAME_RATE)):
            burst = _read(clip, track, sight, frames, finder)
            if burst is not None:
                yield burst


def _select_starts(track: FaceTrack, seconds: float) -> list[FaceObservation]:
    """Return sights that runs begin at, so far apart that no two runs overlap."""
    count = len(track.sights)
    picked = {round(at) for at in np.linspace(0, count - 1, min(_PLACES, count) + 1)[:-1]}
    found: list[FaceObservation] = []
    for at in sorted(picked):
        if not found or track.sights[at].time - found[-1].time >= seconds:
            found.append(track.sights[at])
    return found


def _read(
    clip: Clip, track: FaceTrack, sight: FaceObservation, frames: int, finder: FaceFinder
) -> FrameSequence | None:
    length = frames / (clip.rate or _FRAME_RATE)
    begin = max(min(sight.time, clip.duration - length), 0.0)
    times: list[float] = []
    images: list[Image] = []
    faces: list[FaceDetection] = []
    box = sight.box
    try:
        for frame in sample_frames(clip, frames, exact=True, within=(begin, begin + length)):
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
    return FrameSequence(track.number, tuple(times), tuple(images), tuple(faces))


def _follow(box: Box, found: Sequence[FaceDetection]) -> FaceDetection | None:
    """Return the face that lies where the last one did."""
    best = max(found, key=lambda face: measure_overlap(box, face.box), default=None)
    return best if best is not None and measure_overlap(box, best.box) > 0 else None
