"""Finding the lab's own files again by their watermark, when everything else was stripped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.forensics.clips import CLIPS, open_clip, space_frames
from stillroom.forensics.face import Image
from stillroom.forensics.finishing import Kind, name_kind
from stillroom.forensics.lab import Lab
from stillroom.forensics.pictures import load_picture
from stillroom.forensics.sound_mark import BITS as SOUND_BITS
from stillroom.forensics.sound_mark import SoundMark
from stillroom.forensics.watermark import BITS as PICTURE_BITS
from stillroom.forensics.watermark import CHANCE, Watermark
from stillroom.forensics.waves import RATE, SOUNDS, Waves, read_parts

__all__ = [
    "CLIPS",
    "SOUNDS",
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
_RUN = 12 * RATE
_MOST_HEARD = 300 * RATE


@dataclass(frozen=True, slots=True)
class Trace:
    """A watermark that was read, and the ledger's row of the file that it was written into.

    ``row`` is None where the mark is in no row: of a ledger that was lost, or of a run that was
    killed. ``kept`` is the share of width and height that a crop left. ``covered`` is what of the
    file was read, in words, and ``decodings`` how often bits were decoded until the mark was found.
    """

    watermark: str = ""
    kept: tuple[float, float] = (1.0, 1.0)
    row: Mapping[str, Any] | None = None
    covered: str = ""
    decodings: int = 0

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
        return (
            f"{self.role}{crop}: {self.row['generator']}, seed {self.row['seed']}, "
            f"{self.row['time']}, ledger row {self.row['number']}{by_chance}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "watermark": self.watermark or None,
            "kept": list(self.kept),
            "row": dict(self.row) if self.row else None,
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
    if path.suffix.lower() in CLIPS:
        return trace_clip(path, lab)
    if path.suffix.lower() in SOUNDS:
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
            if seen.payloads:
                break
    return seen.trace(path if clip.has_audio else None)


class FrameMarks:
    """Reads the mark from frames of one clip as they pass, and says in the end what was found."""

    def __init__(self, lab: Lab) -> None:
        """Look for the lab's mark."""
        self._lab, self._mark = lab, Watermark(lab.key)
        self.payloads: list[int] = []
        self._frames = self._decodings = self._until = 0

    def look(self, image: Image) -> None:
        """Read one frame, as it stands."""
        found = self._mark.read(image)
        self._frames += 1
        self._decodings += found.decodings
        if found.payload is not None:
            self._until = self._until or self._decodings
            self.payloads.append(found.payload)

    def trace(self, sound: Path | None) -> Trace:
        """Return the mark of the first frame that has one, else of the sound.

        Args:
            sound: The clip, where it has any.

        Raises:
            DataError: If nothing of the sound can be decoded.
            IntegrityError: If the ledger is broken.
        """
        covered = f"{self._frames} frames as they stand" if self._frames else ""
        if self.payloads:
            text = format(self.payloads[0], f"0{PICTURE_BITS // 4}x")
            row = self._lab.ledger.find(text)
            return Trace(text, (1.0, 1.0), row, covered, self._until)
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
    decodings, until = 0, 0.0
    for run, until in _runs(path):
        found = mark.read(run)
        decodings += found.decodings
        if found.payload is not None:
            text = format(found.payload, f"0{SOUND_BITS // 4}x")
            covered = f"{until:.1f} s of sound"
            return Trace(text, (1.0, 1.0), lab.ledger.find(text), covered, decodings)
    return Trace(covered=f"the first {until:.1f} s of sound", decodings=decodings)


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
    row = lab.ledger.find(found.payload)
    text = format(found.payload, f"0{PICTURE_BITS // 4}x")
    return Trace(text, found.kept, row, covered, decodings)
