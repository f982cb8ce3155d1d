"""Video and audio in a check: runs face tracks, watermark lookup and detectors on them."""

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
from stillroom.forensics.media.face_tracking import VideoScan, scan_clip
from stillroom.forensics.media.face_types import Image
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
    """Analysis of a clip or recording.

    ``sound`` is None without an audio track; ``trace`` is the lab's watermark of the first frame
    that carries one, ``marked`` the number of sampled frames that do; ``scan`` is None without a
    face detector or video.
    """

    clip: Clip
    scan: VideoScan | None = None
    sound: DecodedAudio | None = None
    trace: WatermarkLookup | None = None
    marked: int = 0
    limits: tuple[str, ...] = ()
    findings: tuple[TrackFinding, ...] = ()

    def lines(self) -> list[str]:
        """Format properties and faces over time as lines."""
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
        if self.marked:
            lines.append(f"marked frames: {self.marked} of those looked at")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
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
        }


def analyze_clip(
    path: Path,
    lab: Lab | None = None,
    *,
    detectors: DetectorSet | None = None,
) -> ClipAnalysis:
    """Analyze evenly spaced frames of a clip, and its first audio track.

    Raises:
        DataError: If the file is not a clip, or nothing can be decoded.
    """
    clip = open_clip(path)
    if not (clip.has_video or clip.has_audio):
        raise DataError(
            f"{path.name} has neither video nor audio",
            code="forensics.clip",
            where=str(path),
            expected="a clip or a recording",
            next="remove it",
        )
    limits = [] if clip.has_video else ["the file holds no video"]
    marks = ClipWatermarkReader(lab) if lab is not None else None
    runner = detectors.open_clip_runner() if detectors is not None and clip.has_video else None
    scan = _scan_frames(clip, marks, limits, runner) if clip.has_video else None
    sound = _read_audio_track(path, limits) if clip.has_audio else None
    findings = runner.findings(_bits_per_pixel(clip), clip.codec) if runner is not None else ()
    findings += _score_audio(detectors, path, sound, limits)
    notes = (*clip.notes, *limits)
    analysis = ClipAnalysis(clip, scan, sound, None, 0, notes, findings)
    return analysis if marks is None else _add_watermarks(analysis, path, marks)


def analyze_audio(
    path: Path, lab: Lab | None = None, *, detectors: DetectorSet | None = None
) -> ClipAnalysis:
    """Analyze a recording.

    Raises:
        DataError: If no audio can be decoded.
    """
    sound = read_audio(path)
    limits = list(sound.limits())
    return ClipAnalysis(
        Clip(path, False, True, sound.duration),
        sound=sound,
        trace=look_up_audio(path, lab) if lab is not None else None,
        findings=_score_audio(detectors, path, sound, limits),
        limits=tuple(limits),
    )


def find_watermark(analysis: ClipAnalysis, path: Path, lab: Lab) -> ClipAnalysis:
    """Add the watermark lookup to an analysis made without the lab's key.

    Raises:
        DataError: If the file can no longer be decoded.
    """
    marks = ClipWatermarkReader(lab)
    if analysis.clip.has_video:
        for frame in sample_frames(open_clip(path), _FRAMES):
            marks.read_frame(frame.image)
    return _add_watermarks(analysis, path, marks)


def _add_watermarks(analysis: ClipAnalysis, path: Path, marks: ClipWatermarkReader) -> ClipAnalysis:
    """Add the watermark of the frames, else of the audio."""
    trace = marks.look_up(path if analysis.sound is not None else None)
    return replace(analysis, trace=trace, marked=len(marks.payloads))


def _score_audio(
    detectors: DetectorSet | None, path: Path, sound: DecodedAudio | None, limits: list[str]
) -> tuple[TrackFinding, ...]:
    """Run the audio detectors; on a codec error, the other results still count."""
    if detectors is None or sound is None:
        return ()
    try:
        return detectors.score_audio(path, sound)
    except DataError as error:
        limits.append(f"no audio detector was run: {error.problems[0].what}")
        return ()


def _scan_frames(
    clip: Clip,
    marks: ClipWatermarkReader | None,
    limits: list[str],
    runner: ClipDetectorRunner | None,
) -> VideoScan | None:
    """Scan a clip for faces, and its frames for the watermark; append the limits."""
    on_frame = marks.read_frame if marks is not None else None
    try:
        on_face = runner.add_face if runner is not None else None
        scan = scan_clip(clip, count=_FRAMES, on_frame=on_frame, on_face=on_face)
    except (MissingExtraError, DataError) as error:
        if isinstance(error, DataError) and error.code != "forensics.model":
            raise
        limits.append(f"faces were not detected: {error.problems[0].what}")
        for frame in sample_frames(clip, _FRAMES):
            if on_frame is not None:
                on_frame(frame.image)
        return None
    limits += scan.limits()
    return scan


def _bits_per_pixel(clip: Clip) -> float:
    """Return the bits per pixel and frame of a file, 0 if it does not state enough."""
    pixels = clip.width * clip.height * clip.rate * clip.duration
    return 8 * clip.path.stat().st_size / pixels if pixels else 0.0


def _read_audio_track(path: Path, limits: list[str]) -> DecodedAudio | None:
    """Read a clip's audio; on a decoding error, the other results still count."""
    try:
        sound = read_audio(path)
    except DataError as error:
        limits.append(error.problems[0].what)
        return None
    limits += sound.limits()
    return sound


_PREVIEW_WIDTH = 420
Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class ImagePreview:
    """A reduced image, RGB (H, W, 3), and the boxes (x, y, width, height) of its faces in it."""

    image: Image
    boxes: tuple[Box, ...]


def make_preview(image: Image, boxes: Sequence[Box]) -> ImagePreview:
    """Reduce an image and the boxes of its faces."""
    share = min(_PREVIEW_WIDTH / image.shape[1], _PREVIEW_WIDTH / image.shape[0], 1.0)
    size = max(round(image.shape[1] * share), 1), max(round(image.shape[0] * share), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    placed = tuple(
        (round(x * share), round(y * share), round(width * share), round(height * share))
        for x, y, width, height in boxes
    )
    return ImagePreview(np.asarray(small, dtype=np.uint8), placed)
