"""Watermark detection in files: lookup of the lab's own by their watermark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.forensics.labeling.lab import Lab, has_lab, open_lab
from stillroom.forensics.labeling.marks import LabelKind
from stillroom.forensics.media.audio import SAMPLE_RATE, AudioSamples, read_blocks
from stillroom.forensics.media.face_types import Image
from stillroom.forensics.media.file_types import detect_file_type
from stillroom.forensics.media.images import load_image
from stillroom.forensics.media.video import open_clip, sample_frames
from stillroom.forensics.watermark.audio import AUDIO_PAYLOAD_BITS as SOUND_BITS
from stillroom.forensics.watermark.audio import AudioWatermark
from stillroom.forensics.watermark.fingerprint import (
    ContentMatch,
    compare_audio,
    compare_image,
    count_seconds,
    fingerprint_image,
    is_closer_match,
    is_same_audio,
    match_image,
)
from stillroom.forensics.watermark.image import (
    IMAGE_FALSE_MATCH_RATE,
    ImageWatermark,
    ImageWatermarkResult,
    align_luma,
)
from stillroom.forensics.watermark.image import IMAGE_PAYLOAD_BITS as PICTURE_BITS

__all__ = [
    "ClipWatermarkReader",
    "WatermarkLookup",
    "look_up_audio",
    "look_up_file",
    "look_up_image",
    "refuse_lab_file",
]

_FRAMES = 32
_MIN_SHARE = 0.75  # of a recording that is taken for the marked one with some silence around it
_ROLES: Mapping[LabelKind | None, str] = {
    "forged": "made by this lab",
    "drawn": "made by this lab",
    "synthetic": "kept by this lab as the twin of a forgery, declared as generated",
    "real": "kept by this lab as the real twin of a forgery",
    None: "made or kept by this lab",
}
_ELSEWHERE = (
    "its content differs from what the mark was written into: the mark was copied here, or the "
    "file was changed beyond likeness"
)
_UNBOUND = "whether its content is what was marked is not known"
_SEGMENT = 12 * SAMPLE_RATE
_MAX_AUDIO_SAMPLES = 300 * SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class WatermarkLookup:
    """A watermark reading, and the ledger row of the file that it was embedded in.

    ``row`` is None where no row has the watermark: of a lost ledger, or of a killed run. ``kept``
    is the share of height and width that a crop left. ``covered`` describes the part of the file
    that was read, and ``decodings`` counts decodings until the watermark was found. ``content``
    states whether the file has the content that was marked, ``likeness`` the correlation with the
    row's fingerprint (of the inner cells, where only those match); unknown without a row or
    fingerprint. ``nearer`` is the row of the forgery or twin that an image is clearly closer to.
    ``part`` names the frames or seconds with the watermark where the rest of the file has none.
    """

    watermark: str = ""
    kept: tuple[float, float] = (1.0, 1.0)
    row: Mapping[str, Any] | None = None
    covered: str = ""
    decodings: int = 0
    content: ContentMatch = "unknown"
    likeness: float | None = None
    nearer: int | None = None
    part: str = ""

    @property
    def verdict(self) -> str:
        """Statement supported by the watermark: none about the file if the content differs.

        A watermark can be copied from one file to another without the lab's key.
        """
        if self.content == "differs":
            return f"carries a watermark of this lab, but {_ELSEWHERE}"
        unsure = "" if self.content == "same" else f", {_UNBOUND}"
        if self.part:
            return (
                f"carries this lab's watermark in {self.part}: {self.role}, to test detectors"
                f"{unsure}; that says nothing about the rest of the file"
            )
        return f"carries this lab's watermark: {self.role}, to test detectors{unsure}"

    @property
    def role(self) -> str:
        """The lab's part in a marked file, according to the ledger."""
        return _ROLES[self.row.get("kind") if self.row is not None else None]

    @property
    def chance(self) -> float:
        """Probability that an unmarked file passes as marked with this many decodings."""
        return self.decodings * IMAGE_FALSE_MATCH_RATE

    def line(self) -> str:
        """Format as one line."""
        if not self.watermark:
            where = f" in {self.covered}" if self.covered else ""
            return (
                f"no watermark of this lab{where}; that says nothing about where the file is from"
            )
        crop = (
            ""
            if self.kept == (1.0, 1.0)
            else f", cropped to {self.kept[0]:.0%} x {self.kept[1]:.0%}"
        )
        by_chance = f"; of files without one, {self.chance:.1g} show as much by chance"
        if self.row is None:
            return (
                f"watermark {self.watermark} of this lab{crop}; it is in no row of the "
                f"ledger{by_chance}"
            )
        row = (
            f"{self.row['generator']}, seed {self.row['seed']}, {self.row['time']}, "
            f"ledger row {self.row['number']}"
        )
        if self.content == "differs":
            more = "" if self.nearer is None else f", more to ledger row {self.nearer}"
            likeness = f"likeness {self.likeness:.2f}{more}"
            return f"found{crop}, but {_ELSEWHERE} ({row}; {likeness}){by_chance}"
        bound = f", {_UNBOUND}" if self.content == "unknown" else ""
        part = f", in {self.part} alone" if self.part else ""
        return f"{self.role}{crop}{part}: {row}{bound}{by_chance}"

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "watermark": self.watermark or None,
            "kept": list(self.kept),
            # Without the fingerprint, which would help to make an image that matches it.
            "row": {k: v for k, v in self.row.items() if k != "content"} if self.row else None,
            "content": self.content if self.watermark else None,
            "likeness": None if self.likeness is None else round(self.likeness, 4),
            "nearer": self.nearer,
            "part": self.part or None,
            "covered": self.covered or None,
            "decodings": self.decodings,
            "chance": self.chance,
        }


def look_up_file(path: Path, lab: Lab) -> WatermarkLookup:
    """Read the lab's watermark from an image (also a crop), a clip or audio, and find its row.

    Raises:
        DataError: If the file cannot be read.
        IntegrityError: If the ledger is broken.
    """
    kind = detect_file_type(path)
    if kind is not None and kind.sense == "clip":
        # A clip is read from its uncropped frames, then from its audio.
        clip = open_clip(path)
        reader = ClipWatermarkReader(lab)
        if clip.has_video:
            for frame in sample_frames(clip, _FRAMES):
                reader.read_frame(frame.image)
        return reader.look_up(path if clip.has_audio else None)
    if kind is not None and kind.sense == "sound":
        return look_up_audio(path, lab)
    return look_up_image(load_image(path).image, lab)


class ClipWatermarkReader:
    """Read the watermark from frames of one clip as they are decoded, and look it up at the end."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._mark = lab, ImageWatermark(lab.key)
        self.payloads: list[int] = []
        self._marks: list[_WatermarkRead] = []
        self._frames = self._decodings = self._until = 0

    def read_frame(self, image: Image) -> None:
        """Read one frame, without a crop search."""
        result = self._mark.read(image)
        self._frames += 1
        self._decodings += result.decodings
        if result.payload is not None:
            self._until = self._until or self._decodings
            self.payloads.append(result.payload)
            self._marks.append(_read_image_mark(image, result))

    def look_up(self, sound: Path | None) -> WatermarkLookup:
        """Look up the watermark of the frames, else of the audio; the first that matches wins.

        Raises:
            DataError: If no audio can be decoded.
            IntegrityError: If the ledger is broken.
        """
        covered = f"{self._frames} frames as they stand" if self._frames else ""
        if self._marks:
            lookup = _find_row(self._marks, self._lab, covered, self._until)
            count = len(self._marks)
            part = f"{count} of {self._frames} frames" if count < self._frames else ""
            return replace(lookup, part=part)
        if sound is None:
            return WatermarkLookup(covered=covered, decodings=self._decodings)
        lookup = look_up_audio(sound, self._lab)
        covered = " and ".join(part for part in (covered, lookup.covered) if part)
        decodings = self._decodings + lookup.decodings
        return replace(lookup, covered=covered, decodings=decodings)


def look_up_audio(path: Path, lab: Lab) -> WatermarkLookup:
    """Read the lab's watermark from a recording or a clip's audio, and find its row.

    Segments of 12 seconds, half overlapping, are read over the first five minutes; each segment is
    one reading, with its own probability of a false match.

    Raises:
        DataError: If nothing can be decoded.
        IntegrityError: If the ledger is broken.
    """
    mark = AudioWatermark(lab.key)
    decodings, until, mismatch = 0, 0.0, None
    segments = _iterate_segments(path)
    for run, until in segments:
        result = mark.read(run)
        decodings += result.decodings
        if result.payload is not None:
            text = format(result.payload, f"0{SOUND_BITS // 4}x")
            reading = _WatermarkRead(text, (1.0, 1.0), "sound", run)
            trace = _find_row([reading], lab, f"{until:.1f} s of sound", decodings)
            if trace.content != "differs":
                end = max((end for _, end in segments), default=until)
                return replace(trace, part=_name_part(trace.row, end))
            mismatch = mismatch or trace
    return mismatch or WatermarkLookup(
        covered=f"the first {until:.1f} s of sound", decodings=decodings
    )


def _name_part(row: Mapping[str, Any] | None, seconds: float) -> str:
    """Return which part of a recording a marked one can be, empty where it may be all of it."""
    marked = count_seconds(str(row.get("content") or "")) if row is not None else 0.0
    return f"{marked:.0f} of {seconds:.0f} s" if 0 < marked < _MIN_SHARE * seconds else ""


def _iterate_segments(path: Path) -> Iterator[tuple[AudioSamples, float]]:
    """Yield half overlapping segments of the first minutes, and the end time of each."""
    waiting: list[AudioSamples] = []
    begin, have = 0, 0
    for part in read_blocks(path):
        waiting.append(part)
        have += len(part)
        if have >= _SEGMENT:
            segment = np.concatenate(waiting)
            yield segment, (begin + len(segment)) / SAMPLE_RATE
            begin += _SEGMENT // 2
            waiting, have = [segment[_SEGMENT // 2 :]], len(segment) - _SEGMENT // 2
            if begin >= _MAX_AUDIO_SAMPLES:
                return
    if have > _SEGMENT // 2 or not begin:
        yield np.concatenate(waiting), (begin + have) / SAMPLE_RATE


def look_up_image(image: Image, lab: Lab) -> WatermarkLookup:
    """Read the lab's watermark from pixels, RGB (H, W, 3), and find its row."""
    result = ImageWatermark(lab.key).read(image, search=True)
    covered, decodings = "the picture and its crops", result.decodings
    if result.payload is None:
        return WatermarkLookup(covered=covered, decodings=decodings)
    return _find_row([_read_image_mark(image, result)], lab, covered, decodings)


@dataclass(frozen=True, slots=True)
class _WatermarkRead:
    """A watermark reading with the content it was read from: a fingerprint, or a waveform."""

    watermark: str
    kept: tuple[float, float]
    medium: Literal["picture", "sound"]
    content: npt.NDArray[Any]

    def compare_with(
        self, row: Mapping[str, Any] | None, related: Sequence[Mapping[str, Any]]
    ) -> tuple[ContentMatch, float | None, int | None]:
        """Compare the content with a row: match, correlation, and the number of a closer row."""
        if row is None or not row.get("content"):
            return "unknown", None, None
        stored = str(row["content"])
        if self.medium == "sound":
            likeness = compare_audio(stored, self.content)
            return "same" if is_same_audio(likeness) else "differs", likeness, None
        cells, likeness = match_image(stored, self.content)
        if cells is None:
            return "differs", likeness, None
        for related_row in related:
            related_content = str(related_row.get("content") or "")
            if related_content and is_closer_match(
                likeness, compare_image(related_content, self.content, cells)
            ):
                return "differs", likeness, int(related_row["number"])
        return "same", likeness, None


def _read_image_mark(image: Image, result: ImageWatermarkResult) -> _WatermarkRead:
    text = format(result.payload or 0, f"0{PICTURE_BITS // 4}x")
    return _WatermarkRead(
        text, result.kept, "picture", fingerprint_image(align_luma(image, result))
    )


def _find_row(
    marks: Sequence[_WatermarkRead], lab: Lab, covered: str, decodings: int
) -> WatermarkLookup:
    """Return the first watermark whose content matches its row, else the first."""
    rows = lab.ledger.find_all({mark.watermark for mark in marks})
    related = lab.ledger.find_related(rows.values())
    traces = []
    for mark in marks:
        row = rows.get(mark.watermark)
        match = mark.compare_with(row, related[row["number"]] if row else ())
        traces.append(WatermarkLookup(mark.watermark, mark.kept, row, covered, decodings, *match))
    return next((trace for trace in traces if trace.content == "same"), traces[0])


def refuse_lab_file(file: Path) -> None:
    """Raise for a file with the lab's watermark that would be signed without its generator.

    Raises:
        DataError: If the file carries the watermark of the user's lab.
    """
    kind = detect_file_type(file)
    if not has_lab() or kind is None or kind.sense == "other":
        return
    try:
        lookup = look_up_file(file, open_lab())
    except DataError:
        return  # not readable as media: signing refuses it with its own error
    if lookup.watermark:
        raise DataError(
            f"{file.name} {lookup.verdict}; the signature would not state this",
            code="forensics.lab-file",
            where=str(file),
            expected="--made-by with the generator, for a file made by the lab",
            next="stillroom forensics trace FILE shows which forgery it is",
        )
