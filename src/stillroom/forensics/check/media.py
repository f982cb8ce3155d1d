"""Analysis of video and audio for a check: faces, watermark, pulse, and detector findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from stillroom.errors import DataError, MissingExtraError
from stillroom.forensics.inference.results import TrackFinding
from stillroom.forensics.labeling.lab import Lab
from stillroom.forensics.labeling.lookup import ClipWatermarkReader, WatermarkLookup, look_up_audio
from stillroom.forensics.media.audio import DecodedAudio, read_audio
from stillroom.forensics.media.face import Image
from stillroom.forensics.media.face_tracking import VideoScan, scan_clip
from stillroom.forensics.media.rppg import RppgEstimate, estimate_rppg
from stillroom.forensics.media.video import Clip, open_clip, sample_frames

if TYPE_CHECKING:
    from stillroom.forensics.inference.detector_set import DetectorSet
    from stillroom.forensics.inference.tracks import ClipDetectorRunner

__all__ = [
    "ClipAnalysis",
    "ImagePreview",
    "analyze_audio",
    "analyze_clip",
    "find_watermark",
    "make_preview",
]


_FRAMES = 32


@dataclass(frozen=True)
class ClipAnalysis:
    """What was seen and heard of a clip.

    ``sound`` is None where there is no audio track; ``trace`` is the lab's mark of the first frame
    that carries one, ``marked`` how many of the frames looked at do; ``scan`` is None where no face
    detector is here or the file has no video.
    """

    clip: Clip
    scan: VideoScan | None = None
    sound: DecodedAudio | None = None
    trace: WatermarkLookup | None = None
    marked: int = 0
    limits: tuple[str, ...] = ()
    courses: tuple[TrackFinding, ...] = ()
    pulses: tuple[RppgEstimate, ...] = ()

    def lines(self) -> list[str]:
        """Return what it is, and the faces over time."""
        clip, lines = self.clip, []
        if clip.has_video:
            lines.append(
                f"video: {clip.duration:.1f} s, {clip.width}x{clip.height}, {clip.codec}, "
                f"{clip.rate:.4g} frames a second on average"
            )
        lines.append(f"sound: {self.sound.line()}" if self.sound else "sound: no audio track")
        if self.scan is not None:
            scan = self.scan
            lines.append(
                f"looked at: {len(scan.times)} frames, {clip.decoded} decoded, {scan.shots} shot"
                f"{'' if scan.shots == 1 else 's'}"
            )
            lines += [
                f"face {number}: {track.line()}"
                for number, track in enumerate(scan.tracks, start=1)
            ]
            if not scan.tracks:
                lines.append("faces: none found")
        lines += [f"pulse: {pulse.line()}" for pulse in self.pulses]
        if self.marked:
            lines.append(f"marked frames: {self.marked} of those looked at")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        clip = self.clip
        return {
            "duration": clip.duration,
            "width": clip.width,
            "height": clip.height,
            "codec": clip.codec or None,
            "rate": clip.rate,
            "sound": self.sound.to_json() if self.sound else None,
            "scan": self.scan.to_json() if self.scan else None,
            "marked_frames": self.marked,
            "pulses": [pulse.to_json() for pulse in self.pulses],
        }


def analyze_clip(
    path: Path,
    lab: Lab | None = None,
    *,
    count: int = _FRAMES,
    judges: DetectorSet | None = None,
    with_pulse: bool = False,
) -> ClipAnalysis:
    """Look at evenly spaced frames of a clip, and listen to its first audio track.

    Args:
        path: The file.
        lab: Whose watermark is looked for in the frames, as they stand.
        count: How many frames.
        judges: The detectors that are shown the faces; None shows them to none.
        with_pulse: Look for a pulse in faces, which decodes up to 20 seconds of frames.

    Raises:
        DataError: If the file is no clip, or nothing of it can be decoded.
    """
    clip = open_clip(path)
    if not (clip.has_video or clip.has_audio):
        raise DataError(
            f"{path.name} holds neither video nor sound",
            code="forensics.clip",
            where=str(path),
            expected="a clip or a recording",
            next="leave it out",
        )
    limits = [] if clip.has_video else ["the file holds no video"]
    marks = ClipWatermarkReader(lab) if lab is not None else None
    witness = judges.witness() if judges is not None and clip.has_video else None
    scan = _scan_frames(clip, count, marks, limits, witness) if clip.has_video else None
    sound = _read_audio_track(path, limits) if clip.has_audio else None
    pulses = _measure_pulse(clip, limits) if with_pulse and scan is not None and scan.tracks else ()
    if witness is not None and scan is not None:
        witness.watch(clip, scan.tracks)
    courses = witness.courses(_bits_per_pixel(clip), clip.codec) if witness is not None else ()
    courses += _score_audio(judges, path, sound, limits)
    notes = (*clip.notes, *limits)
    look = ClipAnalysis(clip, scan, sound, None, 0, notes, courses, pulses)
    return look if marks is None else _add_watermarks(look, path, marks)


def analyze_audio(
    path: Path, lab: Lab | None = None, *, judges: DetectorSet | None = None
) -> ClipAnalysis:
    """Listen to a recording.

    Args:
        path: The file.
        lab: Whose watermark is looked for.
        judges: The detectors, of which those that hear are asked.

    Raises:
        DataError: If it holds no sound that can be decoded.
    """
    sound = read_audio(path)
    limits = list(sound.limits())
    return ClipAnalysis(
        Clip(path, False, True, sound.duration),
        sound=sound,
        trace=look_up_audio(path, lab) if lab is not None else None,
        courses=_score_audio(judges, path, sound, limits),
        limits=tuple(limits),
    )


def find_watermark(look: ClipAnalysis, path: Path, lab: Lab) -> ClipAnalysis:
    """Return what was seen and heard without a lab, with what its key finds in the same frames.

    Args:
        look: Made of the same file.
        path: The file.
        lab: Whose watermark is looked for.

    Raises:
        DataError: If it can no longer be decoded.
    """
    marks = ClipWatermarkReader(lab)
    if look.clip.has_video:
        for frame in sample_frames(open_clip(path), _FRAMES):
            marks.look(frame.image)
    return _add_watermarks(look, path, marks)


def _add_watermarks(look: ClipAnalysis, path: Path, marks: ClipWatermarkReader) -> ClipAnalysis:
    """Return a look with the mark of the first frame that has one, else of the sound."""
    trace = marks.trace(path if look.sound is not None else None)
    return replace(look, trace=trace, marked=len(marks.payloads))


def _score_audio(
    judges: DetectorSet | None, path: Path, sound: DecodedAudio | None, limits: list[str]
) -> tuple[TrackFinding, ...]:
    """Return what detectors of sounds make of it; where it cannot be coded, the rest counts."""
    if judges is None or sound is None:
        return ()
    try:
        return judges.listen(path, sound)
    except DataError as error:
        limits.append(f"no detector heard it: {error.problems[0].what}")
        return ()


def _scan_frames(
    clip: Clip,
    count: int,
    marks: ClipWatermarkReader | None,
    limits: list[str],
    witness: ClipDetectorRunner | None,
) -> VideoScan | None:
    """Scan a clip for faces, and its frames for the lab's mark; what limits that is added."""
    look = marks.look if marks is not None else None
    try:
        see = witness.see if witness is not None else None
        scan = scan_clip(clip, count=count, look=look, see=see)
    except (MissingExtraError, DataError) as error:
        if isinstance(error, DataError) and error.code != "forensics.model":
            raise
        limits.append(f"faces were not looked for: {error.problems[0].what}")
        for frame in sample_frames(clip, count):
            if look is not None:
                look(frame.image)
        return None
    limits += scan.limits()
    return scan


def _measure_pulse(clip: Clip, limits: list[str]) -> tuple[RppgEstimate, ...]:
    """Look for a pulse in the faces; where frames cannot be read, the rest still counts."""
    try:
        return estimate_rppg(clip, bits_per_pixel=_bits_per_pixel(clip))
    except DataError as error:
        limits.append(f"no pulse was looked for: {error.problems[0].what}")
        return ()


def _bits_per_pixel(clip: Clip) -> float:
    """Return the bits of a file a pixel and frame, 0 where the file does not say enough."""
    pixels = clip.width * clip.height * clip.rate * clip.duration
    return 8 * clip.path.stat().st_size / pixels if pixels else 0.0


def _read_audio_track(path: Path, limits: list[str]) -> DecodedAudio | None:
    """Hear a clip's sound; where it cannot be decoded, the rest of the clip still counts."""
    try:
        sound = read_audio(path)
    except DataError as error:
        limits.append(error.problems[0].what)
        return None
    limits += sound.limits()
    return sound


_PREVIEW_WIDTH = 420


Box = tuple[int, int, int, int]


class ImagePreview:
    """A reduced picture and the boxes of its faces in its own pixels."""

    def __init__(self, image: Image, boxes: Sequence[Box]) -> None:
        """Keep a picture, RGB (H, W, 3), and boxes (x, y, width, height)."""
        self.image, self.boxes = image, tuple(boxes)


def make_preview(image: Image, boxes: Sequence[Box]) -> ImagePreview:
    """Return a reduced picture with its faces' boxes reduced alike."""
    share = min(_PREVIEW_WIDTH / image.shape[1], _PREVIEW_WIDTH / image.shape[0], 1.0)
    size = max(round(image.shape[1] * share), 1), max(round(image.shape[0] * share), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    placed = [
        (round(x * share), round(y * share), round(width * share), round(height * share))
        for x, y, width, height in boxes
    ]
    return ImagePreview(np.asarray(small, dtype=np.uint8), placed)
