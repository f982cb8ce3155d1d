"""Face tracks across sampled video frames.

Source: tracks by overlap of boxes, as in Bochinski et al. 2017, "High-speed tracking-by-detection
without using image information" (IoU tracker); shot boundaries by histogram correlation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from stillroom.forensics.media.face_detection import FaceDetection, FaceFinder
from stillroom.forensics.media.face_types import Image
from stillroom.forensics.media.video import Clip, Frame, sample_frames

__all__ = [
    "Box",
    "FaceObservation",
    "FaceTrack",
    "VideoScan",
    "scan_clip",
]

_OVERLAP = 0.2
_NEAR = 0.8  # maximum motion between sampled frames, in face widths
_SAME_SHOT = 0.5
_SIDE = 96
_MAX_CROPS = 6
_SMALL = 64
_STRIP = 160
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class FaceObservation:
    """A face in one frame: time in seconds, box, detection score."""

    time: float
    box: Box
    score: float


@dataclass
class FaceTrack:
    """One face over time; ``crops`` are a few small images, evenly spaced over the sightings."""

    shot: int
    number: int = 0
    sights: list[FaceObservation] = field(default_factory=list)
    crops: list[Image] = field(default_factory=list)
    stride: int = 1

    def add(self, sight: FaceObservation, image: Image) -> None:
        """Add a sighting; keep a crop of every ``stride`` sightings, and thin the crops if many."""
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
        """Format as one line."""
        first, last = self.sights[0], self.sights[-1]
        return (
            f"{first.time:.1f} to {last.time:.1f} s, seen in {len(self.sights)} frames, "
            f"{self.width:.0f} pixels wide"
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
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
    """Result of scanning a clip: frame times, shots, tracks, and small frames (``strip``)."""

    times: list[float] = field(default_factory=list)
    shots: int = 0
    tracks: list[FaceTrack] = field(default_factory=list)
    strip: list[tuple[float, Image]] = field(default_factory=list)

    def limits(self) -> tuple[str, ...]:
        """Return properties that limit a judgment of the faces."""
        small = [track for track in self.tracks if track.width < _SMALL]
        limits = []
        if small:
            limits.append(f"{len(small)} of {len(self.tracks)} faces are below {_SMALL} pixels")
        brief = [track for track in self.tracks if len(track.sights) < 2]
        if brief:
            limits.append(f"{len(brief)} faces were seen in one frame alone")
        return tuple(limits)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
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
    on_frame: Callable[[Image], None] | None = None,
    on_face: Callable[[int, float, Image, FaceDetection], None] | None = None,
) -> VideoScan:
    """Detect the faces of a clip in evenly spaced frames, and join them to tracks.

    Args:
        clip: As returned by ``open_clip``.
        count: Number of sampled frames.
        finder: Face detector; default: a new one.
        on_frame: Called with every sampled frame, so that none is decoded twice.
        on_face: Called with every face: track number, time, frame, detection.

    Raises:
        DataError: If the clip has no frame.
        MissingExtraError: If no face detector is installed.
    """
    finder = finder or FaceFinder()
    scan, previous = VideoScan(), None
    alive: list[FaceTrack] = []
    for number, frame in enumerate(sample_frames(clip, count)):
        if on_frame is not None:
            on_frame(frame.image)
        small = cv2.resize(frame.image, (64, 36), interpolation=cv2.INTER_AREA)
        hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV)
        counts = cv2.calcHist([hsv], [0, 1], None, [16, 8], [0, 180, 0, 256])
        histogram = np.asarray(cv2.normalize(counts, counts), dtype=np.float32)
        if (
            previous is None
            or cv2.compareHist(previous, histogram, cv2.HISTCMP_CORREL) < _SAME_SHOT
        ):
            scan.shots += 1
            alive = []
        previous = histogram
        scan.times.append(frame.time)
        if number % max(count // 8, 1) == 0:
            scan.strip.append((frame.time, _reduce(frame.image, _STRIP)))
        detections = finder.find(frame.image)
        alive, track_of = _assign_to_tracks(scan, alive, frame, detections)
        if on_face is not None:
            for index, face in enumerate(detections):
                on_face(track_of[index].number, frame.time, frame.image, face)
    return scan


def _assign_to_tracks(
    scan: VideoScan, alive: Sequence[FaceTrack], frame: Frame, detections: Sequence[FaceDetection]
) -> tuple[list[FaceTrack], dict[int, FaceTrack]]:
    """Assign each detection to the nearest free track; start new tracks for the others.

    Returns:
        The active tracks, and the track of each detection by index.
    """
    pairs = sorted(
        (
            (_measure_overlap(track.sights[-1].box, face.box), index, number)
            for index, track in enumerate(alive)
            for number, face in enumerate(detections)
        ),
        reverse=True,
    )
    track_of: dict[int, FaceTrack] = {}
    assigned: set[int] = set()
    for overlap, index, number in pairs:
        if overlap > 0 and index not in assigned and number not in track_of:
            assigned.add(index)
            track_of[number] = alive[index]
    for number, face in enumerate(detections):
        track = track_of.get(number)
        if track is None:
            track = track_of[number] = FaceTrack(scan.shots, len(scan.tracks))
            scan.tracks.append(track)
        track.add(FaceObservation(frame.time, face.box, face.score), frame.image)
    return [
        *track_of.values(),
        *(track for index, track in enumerate(alive) if index not in assigned),
    ], track_of


def _measure_overlap(first: Box, second: Box) -> float:
    """Return the overlap of two boxes, a small value if they are near, or 0 for different faces."""
    left, top = max(first[0], second[0]), max(first[1], second[1])
    right = min(first[0] + first[2], second[0] + second[2])
    bottom = min(first[1] + first[3], second[1] + second[3])
    both = max(right - left, 0) * max(bottom - top, 0)
    overlap = both / max(first[2] * first[3] + second[2] * second[3] - both, 1e-9)
    if overlap >= _OVERLAP:
        return overlap
    width = min(first[2], second[2])
    gap = np.hypot(
        first[0] + first[2] / 2 - second[0] - second[2] / 2,
        first[1] + first[3] / 2 - second[1] - second[3] / 2,
    )
    alike = 0.5 < first[2] / max(second[2], 1e-9) < 2
    return 0.1 * (1 - float(gap) / (_NEAR * width)) if alike and gap < _NEAR * width else 0.0


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
