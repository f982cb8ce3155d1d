"""Content fingerprints that bind a watermark to the media it was written into.

A watermark can be lifted from one file and laid on another without the lab's key: who has the
marked file and the one before needs no more than their difference. So the ledger keeps a sketch of
the content of each file that is marked, and a mark that is found says something about a file only
where the file resembles that sketch. Of pictures it is the mean luma of 16 x 16 cells; of sounds
the loudness of 8 bands every quarter of a second. Both are compared by the correlation of what
stands out from the cells around, so that brightness, contrast and loudness do not count.

A caption or a border changes the outer cells and leaves the picture what it was. So a picture that
does not resemble the sketch as a whole is held against its inner cells alone, where it has to
resemble it more: fewer cells are alike by chance more often.

A sketch is coarse: a picture that was changed in one small place resembles it. A forgery and its
real twin resemble each other, so that a picture is held against both sketches: what is clearly more
like the other one carries a mark that was copied. It tells no more than that.
"""

from __future__ import annotations

import base64
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from stillroom.forensics.media.audio import SAMPLE_RATE, AudioSamples, compute_stft

__all__ = [
    "CellSelection",
    "ContentMatch",
    "compare_audio",
    "compare_image",
    "fingerprint_audio",
    "fingerprint_image",
    "is_closer_match",
    "is_same_audio",
    "match_image",
    "pack_fingerprint",
]

CellSelection = Literal["all", "inner"]
"""Which cells of pictures are compared."""

ContentMatch = Literal["same", "differs", "unknown"]
"""Whether a marked file holds what the mark was written into."""

Floats = npt.NDArray[np.float64]

_CELLS = 16
_MARGIN = 3  # cells: what a caption or border may cover on each side
_AROUND = 1.5  # cells: what a cell is compared with
_FLOOR = 1.0  # levels of gray, or dB: less than this is no structure
_BANDS, _LOWEST, _HIGHEST = 8, 200.0, 5000.0
_HOP = SAMPLE_RATE // 4
_PHASES = 4
_QUIET_DB = 25.0
_OVERLAP = 0.75
_MIN_ADVANTAGE = 0.002
_MIN_CORRELATION = {"all": 0.92, "inner": 0.97, "sound": 0.85}


def fingerprint_image(square: npt.NDArray[np.float32]) -> Floats:
    """Return the mean luma of each cell, (16, 16); NaN where part of a cell is missing.

    Args:
        square: As ``watermark.lay_out`` gives it.
    """
    side = len(square) // _CELLS
    return np.asarray(square.reshape(_CELLS, side, _CELLS, side).mean((1, 3)), np.float64)


def fingerprint_audio(values: AudioSamples, start: int = 0) -> Floats:
    """Return the loudness in dB of each band in each quarter of a second, (places, 8).

    Args:
        values: At ``waves.RATE``.
        start: The value that the first place begins at.
    """
    count = max(len(values) - start, 0) // _HOP
    if not count:
        return np.zeros((0, _BANDS))
    inner = values[start : start + count * _HOP]
    step = _HOP // 4
    power = np.abs(compute_stft(inner, 2 * step, step)[: 4 * count]) ** 2
    frequency = np.linspace(0, SAMPLE_RATE / 2, power.shape[1])
    edges = np.geomspace(_LOWEST, _HIGHEST, _BANDS + 1)
    bands = [
        power[:, (frequency >= low) & (frequency < high)].mean(1) for low, high in pairwise(edges)
    ]
    loud = np.stack(bands, 1).reshape(count, 4, _BANDS).mean(1)
    quiet = loud.mean() * 10 ** (-_QUIET_DB / 10)
    return np.asarray(10 * np.log10(loud + quiet + 1e-12))


def pack_fingerprint(sketch: Floats) -> str:
    """Return a sketch as a row of the ledger keeps it: one byte a cell, from its least on."""
    levels = (sketch - sketch.min(initial=np.inf)).clip(0, 255)
    return base64.b64encode(np.rint(levels).astype(np.uint8)).decode("ascii")


def compare_image(kept: str, found: Floats, cells: CellSelection = "all") -> float:
    """Return how alike a picture is to what a row kept: a correlation, at most 1.

    Args:
        kept: As ``pack_fingerprint`` gave it.
        found: As ``fingerprint_image`` gives it; cells that are missing do not count.
        cells: All, or the inner ones, which captions and borders leave as they were.
    """
    there = np.isfinite(found)
    if cells == "inner":
        inner = np.zeros_like(there)
        inner[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = True
        there &= inner
    if not there.any():
        return 0.0
    marked = _unpack(kept).reshape(_CELLS, _CELLS)
    return _correlate(_subtract_surround(marked, there), _subtract_surround(found, there))


def compare_audio(kept: str, values: AudioSamples) -> float:
    """Return how alike a sound is to what a row kept, wherever the one begins in the other.

    Args:
        kept: As ``pack_fingerprint`` gave it.
        values: At ``waves.RATE``.
    """
    whole = _unpack(kept).reshape(-1, _BANDS)
    starts = range(0, _HOP, _HOP // _PHASES)
    return max(_correlate_times(whole, fingerprint_audio(values, start)) for start in starts)


def match_image(kept: str, found: Floats) -> tuple[CellSelection | None, float]:
    """Return which cells of a picture are those of the marked one, and how alike they are.

    Args:
        kept: As ``pack_fingerprint`` gave it.
        found: As ``fingerprint_image`` gives it.

    Returns:
        None and the likeness of all cells where neither all nor the inner ones are alike enough.
    """
    whole = compare_image(kept, found)
    if whole >= _MIN_CORRELATION["all"]:
        return "all", whole
    inner = compare_image(kept, found, "inner")
    return ("inner", inner) if inner >= _MIN_CORRELATION["inner"] else (None, whole)


def is_same_audio(likeness: float) -> bool:
    """Return whether a sound that resembles a sketch so much is the marked one."""
    return likeness >= _MIN_CORRELATION["sound"]


def is_closer_match(likeness: float, other: float) -> bool:
    """Return whether a picture is clearly more like another sketch than that of its mark.

    A forgery and its real twin resemble each other; edits move a picture away from both alike.
    """
    return other > likeness + _MIN_ADVANTAGE


def _unpack(kept: str) -> Floats:
    return np.frombuffer(base64.b64decode(kept), np.uint8).astype(np.float64)


def _subtract_surround(cells: Floats, there: npt.NDArray[np.bool_]) -> Floats:
    """Return by how much each cell differs from those around, of the cells that are there."""
    place = np.arange(_CELLS)
    near = np.exp(-0.5 * ((place[:, None] - place[None]) / _AROUND) ** 2)
    known = np.where(there, cells, 0.0)
    around = (near @ known @ near) / (near @ there.astype(np.float64) @ near)
    return np.asarray((cells - around)[there])


def _correlate_times(one: Floats, other: Floats) -> float:
    """Return the highest correlation over every shift that leaves enough in common."""
    if len(one) < len(other):
        one, other = other, one
    if not len(other):
        return 0.0
    least, best = int(np.ceil(_OVERLAP * len(other))), -1.0
    for shift in range(least - len(other), len(one) - least + 1):
        mine = one[max(shift, 0) : shift + len(other)]
        its = other[max(-shift, 0) :][: len(mine)]
        best = max(best, _correlate(mine - mine.mean(0), its - its.mean(0)))
    return best


def _correlate(one: Floats, other: Floats) -> float:
    """Return the correlation of two sets of numbers whose mean is 0, with a floor under both."""
    floor = _FLOOR**2 * one.size
    both = float((one * other).sum()) + floor
    sizes = (float((one**2).sum()) + floor) * (float((other**2).sum()) + floor)
    return both / float(np.sqrt(sizes))
