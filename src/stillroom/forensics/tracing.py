"""Finding the lab's own files again by their watermark, when everything else was stripped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.forensics.clips import open_clip, space_frames
from stillroom.forensics.finishing import Kind, name_kind
from stillroom.forensics.lab import Lab
from stillroom.forensics.pictures import load_picture
from stillroom.forensics.sound_mark import BITS, SoundMark
from stillroom.forensics.watermark import Watermark
from stillroom.forensics.waves import RATE, SOUNDS, Waves, read_parts

__all__ = ["CLIPS", "SOUNDS", "Trace", "trace_clip", "trace_file", "trace_image", "trace_sound"]

CLIPS = frozenset([".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"])
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
    killed. ``kept`` is the share of width and height that a crop left.
    """

    watermark: str = ""
    kept: tuple[float, float] = (1.0, 1.0)
    row: Mapping[str, Any] | None = None

    @property
    def role(self) -> str:
        """What the lab had to do with a marked file, as far as the ledger says."""
        return _ROLES[name_kind(self.row) if self.row is not None else None]

    def line(self) -> str:
        """Return the finding as one line."""
        if not self.watermark:
            return "no watermark of this lab; that says nothing about where the file is from"
        crop = (
            ""
            if self.kept == (1.0, 1.0)
            else f", cropped to {self.kept[0]:.0%} x {self.kept[1]:.0%}"
        )
        if self.row is None:
            return f"watermark {self.watermark} of this lab{crop}; it is in no row of the ledger"
        return (
            f"{self.role}{crop}: {self.row['generator']}, seed {self.row['seed']}, "
            f"{self.row['time']}, ledger row {self.row['number']}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "watermark": self.watermark or None,
            "kept": list(self.kept),
            "row": dict(self.row) if self.row else None,
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
    if clip.has_video:
        mark = Watermark(lab.key)
        for frame in space_frames(clip, _FRAMES):
            if (payload := mark.read(frame.image).payload) is not None:
                return Trace(format(payload, "012x"), (1.0, 1.0), lab.ledger.find(payload))
    return trace_sound(path, lab) if clip.has_audio else Trace()


def trace_sound(path: Path, lab: Lab) -> Trace:
    """Read the lab's watermark from a recording or a clip's sound, and find its row.

    Runs of 12 seconds are read, half overlapping, over the first five minutes.

    Raises:
        DataError: If nothing of it can be decoded.
        IntegrityError: If the ledger is broken.
    """
    mark = SoundMark(lab.key)
    waiting, heard, have = [], 0, 0
    for part in read_parts(path):
        waiting.append(part)
        have += len(part)
        if have >= _RUN:
            whole = np.concatenate(waiting)
            if (found := _found_in(whole, mark, lab)) is not None:
                return found
            heard += _RUN // 2
            waiting, have = [whole[_RUN // 2 :]], len(whole) - _RUN // 2
            if heard >= _MOST_HEARD:
                return Trace()
    return (_found_in(np.concatenate(waiting), mark, lab) if have else None) or Trace()


def _found_in(values: Waves, mark: SoundMark, lab: Lab) -> Trace | None:
    payload = mark.read(values).payload
    if payload is None:
        return None
    text = format(payload, f"0{BITS // 4}x")
    return Trace(text, (1.0, 1.0), lab.ledger.find(text))


def trace_image(image: Any, lab: Lab) -> Trace:
    """Read the lab's watermark from pixels, RGB (H, W, 3), and find its row."""
    found = Watermark(lab.key).read(image, search=True)
    if found.payload is None:
        return Trace()
    return Trace(format(found.payload, "012x"), found.kept, lab.ledger.find(found.payload))
