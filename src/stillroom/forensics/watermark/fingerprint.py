"""Content fingerprints that bind a watermark to the media it was written into.

A watermark can be copied from one file to another without the lab's key: the difference between a
marked and an unmarked file suffices. The ledger therefore stores a fingerprint of the content of
each marked file, and a watermark is evidence about a file only where the file matches it. For
images it is the mean luma of 16 x 16 cells, for audio the loudness of 8 bands every quarter of a
second. Both are compared by the correlation of local contrast, so that brightness, contrast and
loudness do not count.

A caption or border changes only the outer cells. An image that does not match as a whole is
compared by its inner cells, with a higher threshold: fewer cells match by chance more often.

A fingerprint is coarse: an image changed in one small region still matches. A forgery and its real
twin match each other, so an image is compared with both fingerprints: clearly closer to the other
one means a copied watermark. It shows no more than that.
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
    "count_seconds",
    "fingerprint_audio",
    "fingerprint_image",
    "is_closer_match",
    "is_same_audio",
    "match_image",
    "pack_fingerprint",
]

CellSelection = Literal["all", "inner"]
"""Cells of an image to compare."""

ContentMatch = Literal["same", "differs", "unknown"]
"""Whether a file has the content that its watermark was embedded in."""

Floats = npt.NDArray[np.float64]
_CELLS = 16
_MARGIN = 3  # cells that a caption or border may cover on each side
_AROUND = 1.5  # cells: standard deviation of the surround
_FLOOR = 1.0  # gray levels, or dB, below which there is no structure
_BANDS, _LOWEST, _HIGHEST = 8, 200.0, 5000.0
_HOP = SAMPLE_RATE // 4
_PHASES = 4
_QUIET_DB = 25.0
_OVERLAP = 0.75
_MIN_ADVANTAGE = 0.002
_MIN_CORRELATION = {"all": 0.92, "inner": 0.97, "sound": 0.85}


def fingerprint_image(square: npt.NDArray[np.float32]) -> Floats:
    """Return the mean luma of each cell, (16, 16); NaN where part of a cell is missing."""
    side = len(square) // _CELLS
    return np.asarray(square.reshape(_CELLS, side, _CELLS, side).mean((1, 3)), np.float64)


def fingerprint_audio(values: AudioSamples, start: int = 0) -> Floats:
    """Return the loudness in dB of each band in each quarter of a second, (steps, 8).

    Args:
        values: At ``SAMPLE_RATE``.
        start: First sample.
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
    """Encode a fingerprint for a ledger row: one byte per cell, relative to the minimum."""
    levels = (sketch - sketch.min(initial=np.inf)).clip(0, 255)
    return base64.b64encode(np.rint(levels).astype(np.uint8)).decode("ascii")


def compare_image(stored: str, fingerprint: Floats, cells: CellSelection = "all") -> float:
    """Return the correlation of an image with a stored fingerprint, at most 1.

    Args:
        stored: As returned by ``pack_fingerprint``.
        fingerprint: As returned by ``fingerprint_image``; missing cells do not count.
        cells: All, or the inner ones, which captions and borders do not reach.
    """
    is_present = np.isfinite(fingerprint)
    if cells == "inner":
        inner = np.zeros_like(is_present)
        inner[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = True
        is_present &= inner
    if not is_present.any():
        return 0.0
    marked = _unpack(stored).reshape(_CELLS, _CELLS)
    return _correlate(
        _subtract_surround(marked, is_present), _subtract_surround(fingerprint, is_present)
    )


def compare_audio(stored: str, values: AudioSamples) -> float:
    """Return the correlation of audio with a stored fingerprint, over all time offsets."""
    stored_bands = _unpack(stored).reshape(-1, _BANDS)
    starts = range(0, _HOP, _HOP // _PHASES)
    return max(_correlate_times(stored_bands, fingerprint_audio(values, start)) for start in starts)


def count_seconds(stored: str) -> float:
    """Return the length of the audio of a stored fingerprint in seconds."""
    return len(_unpack(stored)) // _BANDS * _HOP / SAMPLE_RATE


def match_image(stored: str, fingerprint: Floats) -> tuple[CellSelection | None, float]:
    """Return which cells of an image match a stored fingerprint, and their correlation.

    Returns:
        None and the correlation of all cells where neither all nor the inner ones match.
    """
    correlation = compare_image(stored, fingerprint)
    if correlation >= _MIN_CORRELATION["all"]:
        return "all", correlation
    inner = compare_image(stored, fingerprint, "inner")
    return ("inner", inner) if inner >= _MIN_CORRELATION["inner"] else (None, correlation)


def is_same_audio(likeness: float) -> bool:
    """Return whether a correlation identifies audio as the marked content."""
    return likeness >= _MIN_CORRELATION["sound"]


def is_closer_match(likeness: float, other_likeness: float) -> bool:
    """Return whether an image is clearly closer to another fingerprint than to that of its mark.

    A forgery and its real twin match each other; edits move an image away from both alike.
    """
    return other_likeness > likeness + _MIN_ADVANTAGE


def _unpack(stored: str) -> Floats:
    return np.frombuffer(base64.b64decode(stored), np.uint8).astype(np.float64)


def _subtract_surround(cells: Floats, is_present: npt.NDArray[np.bool_]) -> Floats:
    """Return the difference of each present cell from its surround."""
    position = np.arange(_CELLS)
    near = np.exp(-0.5 * ((position[:, None] - position[None]) / _AROUND) ** 2)
    known = np.where(is_present, cells, 0.0)
    around = (near @ known @ near) / (near @ is_present.astype(np.float64) @ near)
    return np.asarray((cells - around)[is_present])


def _correlate_times(first: Floats, second: Floats) -> float:
    """Return the highest correlation over all shifts with sufficient overlap."""
    if len(first) < len(second):
        first, second = second, first
    if not len(second):
        return 0.0
    least, best = int(np.ceil(_OVERLAP * len(second))), -1.0
    for shift in range(least - len(second), len(first) - least + 1):
        first_part = first[max(shift, 0) : shift + len(second)]
        second_part = second[max(-shift, 0) :][: len(first_part)]
        best = max(
            best, _correlate(first_part - first_part.mean(0), second_part - second_part.mean(0))
        )
    return best


def _correlate(first: Floats, second: Floats) -> float:
    """Return the correlation of two zero-mean arrays, regularized by a floor."""
    floor = _FLOOR**2 * first.size
    both = float((first * second).sum()) + floor
    sizes = (float((first**2).sum()) + floor) * (float((second**2).sum()) + floor)
    return both / float(np.sqrt(sizes))
