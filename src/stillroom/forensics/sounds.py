"""Reading sound: what a recording is, and what of it limits a judgement.

Decoded block by block, so that memory does not grow with its length: level, clipping, silence and
the frequency below which nearly all energy lies, which tells a telephone's band from a studio's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.forensics.clips import need_decoder, say_reason
from stillroom.forensics.extras import need

__all__ = ["Sound", "hear_sound"]

_SHORT = 1.0
_NARROW = 4000.0
_BLOCK = 2048
_SILENT = 10 ** (-50 / 20)
_MOST_BLOCKS = 4000
_ENERGY = 0.999


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording: seconds, samples a second, channels, and shares of clipping and silence.

    ``band`` is the frequency in Hz below which 99.9 % of the energy of loud blocks lies.
    """

    duration: float
    rate: int
    channels: int
    codec: str
    peak: float
    clipped: float
    silent: float
    band: float
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """Return what it is as one line."""
        return (
            f"{self.duration:.1f} s, {self.rate} Hz, {self.channels} channel"
            f"{'' if self.channels == 1 else 's'}, {self.codec}, energy below {self.band:.0f} Hz"
        )

    def limits(self) -> tuple[str, ...]:
        """Return what limits a judgement of it."""
        found = list(self.notes)
        if self.duration < _SHORT:
            found.append(f"only {self.duration:.2f} s of sound")
        if self.silent > 0.9:
            found.append(f"{self.silent:.0%} of the sound is silence")
        elif self.band < _NARROW:
            found.append(f"narrow band: the sound has no energy above {self.band:.0f} Hz")
        if self.clipped > 0.001:
            found.append(f"{self.clipped:.1%} of the sound is clipped")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "notes"}


def hear_sound(path: Path) -> Sound:
    """Read a recording, or a clip's first audio track.

    Raises:
        DataError: If there is none, or it cannot be decoded at all.
    """
    need("av")
    import av

    notes: list[str] = []
    tally = _Tally()
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise _refused(path, "holds no sound", "a file with an audio track")
            stream = container.streams.audio[0]
            need_decoder(path, stream, "sound")
            codec = stream.codec_context.name
            try:
                for block in _blocks(container, stream):
                    tally.add(block)
            except av.FFmpegError as error:
                notes.append(f"damaged after {tally.seconds:.1f} s: {say_reason(error)}")
    except DataError:
        raise
    except (av.FFmpegError, ValueError) as error:
        said = say_reason(error)
        raise _refused(path, f"is damaged, or no recording: {said}", "a whole file") from error
    if not tally.count:
        raise _refused(path, "holds no sound that can be decoded", "a whole file")
    return tally.result(codec, tuple(notes))


class _Tally:
    """What is kept of a recording while it passes by."""

    def __init__(self) -> None:
        self.rate, self.channels, self.count = 0, 0, 0
        self.peak, self.clipped, self.silent = 0.0, 0, 0
        self.power = np.zeros(_BLOCK // 2 + 1)
        self.heard = 0

    @property
    def seconds(self) -> float:
        return self.count / self.rate if self.rate else 0.0

    def add(self, block: tuple[npt.NDArray[np.float32], int]) -> None:
        values, self.rate = block  # (channels, samples)
        self.channels = values.shape[0]
        size = np.abs(values).max(axis=0)
        self.count += len(size)
        self.peak = max(self.peak, float(size.max(initial=0)))
        self.clipped += int((size >= 0.999).sum())
        self.silent += int((size < _SILENT).sum())
        mono = values.mean(axis=0)
        for begin in range(0, len(mono) - _BLOCK + 1, _BLOCK):
            part = mono[begin : begin + _BLOCK]
            if self.heard < _MOST_BLOCKS and float(np.abs(part).max()) >= _SILENT:
                self.power += np.abs(np.fft.rfft(part * np.hanning(_BLOCK))) ** 2
                self.heard += 1

    def result(self, codec: str, notes: tuple[str, ...]) -> Sound:
        band = 0.0
        if self.power.sum() > 0:
            share = np.cumsum(self.power) / self.power.sum()
            band = float(np.argmax(share >= _ENERGY)) * self.rate / _BLOCK
        return Sound(
            round(self.seconds, 3),
            self.rate,
            self.channels,
            codec,
            round(self.peak, 4),
            self.clipped / self.count,
            self.silent / self.count,
            round(band, 1),
            notes,
        )


def _blocks(container: Any, stream: Any) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """Yield blocks of about a second, (channels, samples) in [-1, 1], and their rate."""
    import av

    resampler = av.AudioResampler(format="fltp")
    waiting: list[npt.NDArray[np.float32]] = []
    rate = int(stream.codec_context.sample_rate or 1)
    for frame in container.decode(stream):
        rate = frame.sample_rate
        waiting += [np.asarray(part.to_ndarray(), np.float32) for part in resampler.resample(frame)]
        if sum(part.shape[1] for part in waiting) >= max(rate, _BLOCK):
            yield np.concatenate(waiting, axis=1), rate
            waiting = []
    if waiting:
        yield np.concatenate(waiting, axis=1), rate


def _refused(path: Path, what: str, expected: str) -> DataError:
    return DataError(
        f"{path.name} {what}",
        code="forensics.clip",
        where=str(path),
        expected=expected,
        next="convert it, or leave it out",
    )
