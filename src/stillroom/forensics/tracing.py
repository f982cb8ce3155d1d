"""Finding the lab's own files again by their watermark, when everything else was stripped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stillroom.forensics.clips import open_clip, space_frames
from stillroom.forensics.content import (
    Content,
    is_nearer,
    is_same_sound,
    match_picture,
    resemble_picture,
    resemble_sound,
    sketch_picture,
)
from stillroom.forensics.face import Image
from stillroom.forensics.finishing import Kind, name_kind
from stillroom.forensics.kinds import kind_of
from stillroom.forensics.lab import Lab
from stillroom.forensics.pictures import load_picture
from stillroom.forensics.sound_mark import BITS as SOUND_BITS
from stillroom.forensics.sound_mark import SoundMark
from stillroom.forensics.watermark import BITS as PICTURE_BITS
from stillroom.forensics.watermark import CHANCE, Reading, Watermark, lay_out
from stillroom.forensics.waves import RATE, Waves, read_parts

__all__ = [
    "FrameMarks",
    "Trace",
    "trace_clip",
    "trace_file",
    "trace_image",
    "trace_sound",
]

_FRAMES = 32
_ROLES: Mapping[Kind | None, str] = {
    "forged": "made by this lab",
    "drawn": "made by this lab",
    "synthetic": "kept by this lab as the twin of a forgery, said to be made by a generator",
    "real": "kept by this lab as the real twin of a forgery",
    None: "made or kept by this lab",
}
_ELSEWHERE = (
    "its content differs from what the mark was written into: the mark was copied here, or the "
    "file was changed beyond likeness"
)
_UNBOUND = "whether its content is what was marked is not known"
_RUN = 12 * RATE
_MOST_HEARD = 300 * RATE


@dataclass(frozen=True, slots=True)
class Trace:
    """A watermark that was read, and the ledger's row of the file that it was written into.

    ``row`` is None where the mark is in no row: of a ledger that was lost, or of a run that was
    killed. ``kept`` is the share of width and height that a crop left. ``covered`` is what of the
    file was read, in words, and ``decodings`` how often bits were decoded until the mark was found.
    ``content`` says whether the file holds what the mark was written into, ``likeness`` by which
    correlation with the row's sketch (its inner cells, where only those are alike); it is unknown
    where there is no row, or one without a sketch.
    ``nearer`` is the row of a forgery or twin beside it that a picture resembles clearly more.
    """

    watermark: str = ""
    kept: tuple[float, float] = (1.0, 1.0)
    row: Mapping[str, Any] | None = None
    covered: str = ""
    decodings: int = 0
    content: Content = "unknown"
    likeness: float | None = None
    nearer: int | None = None

    @property
    def verdict(self) -> str:
        """What the mark says of the file, and no more: nothing where it was written into another.

        A mark can be lifted from a file and laid on another without the lab's key.
        """
        if self.content == "differs":
            return f"carries a watermark of this lab, but {_ELSEWHERE}"
        unsure = "" if self.content == "same" else f", {_UNBOUND}"
        return f"carries this lab's watermark: {self.role}, to test detectors{unsure}"

    @property
    def role(self) -> str:
        """What the lab had to do with a marked file, as far as the ledger says."""
        return _ROLES[name_kind(self.row) if self.row is not None else None]

    @property
    def chance(self) -> float:
        """With which a whole file that is not marked passes for marked by so many decodings."""
        return self.decodings * CHANCE

    def line(self) -> str:
        """Return the finding as one line."""
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
        return f"{self.role}{crop}: {row}{bound}{by_chance}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "watermark": self.watermark or None,
            "kept": list(self.kept),
            # Not the sketch: who has it could make a picture that resembles it.
            "row": {k: v for k, v in self.row.items() if k != "content"} if self.row else None,
            "content": self.content if self.watermark else None,
            "likeness": None if self.likeness is None else round(self.likeness, 4),
            "nearer": self.nearer,
            "covered": self.covered or None,
            "decodings": self.decodings,
            "chance": self.chance,
        }


def trace_file(path: Path, lab: Lab) -> Trace:
    """Read the lab's watermark from a picture (also a crop), a clip or a sound; find its row.

    Raises:
        DataError: If the file cannot be read.
        IntegrityError: If the ledger is broken.
    """
    kind = kind_of(path)
    if kind is not None and kind.sense == "clip":
        return trace_clip(path, lab)
    if kind is not None and kind.sense == "sound":
        return trace_sound(path, lab)
    return trace_image(load_picture(path).image, lab)


def trace_clip(path: Path, lab: Lab) -> Trace:
    """Read the lab's watermark from a clip: its frames as they stand, then its sound.

    Raises:
        DataError: If the clip cannot be read.
        IntegrityError: If the ledger is broken.
    """
    clip = open_clip(path)
    seen = FrameMarks(lab)
    if clip.has_video:
        for frame in space_frames(clip, _FRAMES):
            seen.look(frame.image)
    return seen.trace(path if clip.has_audio else None)


class FrameMarks:
    """Reads the mark from frames of one clip as they pass, and says in the end what was found."""

    def __init__(self, lab: Lab) -> None:
        """Look for the lab's mark."""
        self._lab, self._mark = lab, Watermark(lab.key)
        self.payloads: list[int] = []
        self._marks: list[_Mark] = []
        self._frames = self._decodings = self._until = 0

    def look(self, image: Image) -> None:
        """Read one frame, as it stands."""
        found = self._mark.read(image)
        self._frames += 1
        self._decodings += found.decodings
        if found.payload is not None:
            self._until = self._until or self._decodings
            self.payloads.append(found.payload)
            self._marks.append(_mark_picture(image, found))

    def trace(self, sound: Path | None) -> Trace:
        """Return the mark of a frame, else of the sound: the first whose content it is, if any.

        Args:
            sound: The clip, where it has any.

        Raises:
            DataError: If nothing of the sound can be decoded.
            IntegrityError: If the ledger is broken.
        """
        covered = f"{self._frames} frames as they stand" if self._frames else ""
        if self._marks:
            return _find(self._marks, self._lab, covered, self._until)
        if sound is None:
            return Trace(covered=covered, decodings=self._decodings)
        heard = trace_sound(sound, self._lab)
        covered = " and ".join(part for part in (covered, heard.covered) if part)
        decodings = self._decodings + heard.decodings
        return replace(heard, covered=covered, decodings=decodings)


def trace_sound(path: Path, lab: Lab) -> Trace:
    """Read the lab's watermark from a recording or a clip's sound, and find its row.

    Runs of 12 seconds are read, half overlapping, over the first five minutes; each run is a
    reading of its own, with its own chance to fit where there is no mark.

    Raises:
        DataError: If nothing of it can be decoded.
        IntegrityError: If the ledger is broken.
    """
    mark = SoundMark(lab.key)
    decodings, until, elsewhere = 0, 0.0, None
    for run, until in _runs(path):
        found = mark.read(run)
        decodings += found.decodings
        if found.payload is not None:
            text = format(found.payload, f"0{SOUND_BITS // 4}x")
            one = _Mark(text, (1.0, 1.0), "sound", run)
            trace = _find([one], lab, f"{until:.1f} s of sound", decodings)
            if trace.content != "differs":
                return trace
            elsewhere = elsewhere or trace
    return elsewhere or Trace(covered=f"the first {until:.1f} s of sound", decodings=decodings)


def _runs(path: Path) -> Iterator[tuple[Waves, float]]:
    """Yield runs, half overlapping, of the first minutes, and the second that each ends at."""
    waiting: list[Waves] = []
    begin, have = 0, 0
    for part in read_parts(path):
        waiting.append(part)
        have += len(part)
        if have >= _RUN:
            whole = np.concatenate(waiting)
            yield whole, (begin + len(whole)) / RATE
            begin += _RUN // 2
            waiting, have = [whole[_RUN // 2 :]], len(whole) - _RUN // 2
            if begin >= _MOST_HEARD:
                return
    if have > _RUN // 2 or not begin:
        yield np.concatenate(waiting), (begin + have) / RATE


def trace_image(image: Image, lab: Lab) -> Trace:
    """Read the lab's watermark from pixels, RGB (H, W, 3), and find its row."""
    found = Watermark(lab.key).read(image, search=True)
    covered, decodings = "the picture and its crops", found.decodings
    if found.payload is None:
        return Trace(covered=covered, decodings=decodings)
    return _find([_mark_picture(image, found)], lab, covered, decodings)


@dataclass(frozen=True, slots=True)
class _Mark:
    """A mark that was read, and of what: a picture's sketch, or a sound as it is."""

    watermark: str
    kept: tuple[float, float]
    medium: Literal["picture", "sound"]
    content: npt.NDArray[Any]

    def hold_against(
        self, row: Mapping[str, Any] | None, beside: Sequence[Mapping[str, Any]]
    ) -> tuple[Content, float | None, int | None]:
        """Return whether this is what a row's file held, how like it is, and what is nearer.

        Args:
            row: The ledger's of the mark.
            beside: Rows of the forgery or twin of the same picture.
        """
        if row is None or not row.get("content"):
            return "unknown", None, None
        kept = str(row["content"])
        if self.medium == "sound":
            likeness = resemble_sound(kept, self.content)
            return "same" if is_same_sound(likeness) else "differs", likeness, None
        cells, likeness = match_picture(kept, self.content)
        if cells is None:
            return "differs", likeness, None
        for other in beside:
            sketch = str(other.get("content") or "")
            if sketch and is_nearer(likeness, resemble_picture(sketch, self.content, cells)):
                return "differs", likeness, int(other["number"])
        return "same", likeness, None


def _mark_picture(image: Image, found: Reading) -> _Mark:
    text = format(found.payload or 0, f"0{PICTURE_BITS // 4}x")
    return _Mark(text, found.kept, "picture", sketch_picture(lay_out(image, found)))


def _find(marks: Sequence[_Mark], lab: Lab, covered: str, decodings: int) -> Trace:
    """Return the first mark that lies on the content of its row, else the first."""
    rows = lab.ledger.find_all({mark.watermark for mark in marks})
    beside = lab.ledger.find_beside(rows.values())
    traces = []
    for mark in marks:
        row = rows.get(mark.watermark)
        held = mark.hold_against(row, beside[row["number"]] if row else ())
        traces.append(Trace(mark.watermark, mark.kept, row, covered, decodings, *held))
    return next((trace for trace in traces if trace.content == "same"), traces[0])
