"""Sound as numbers: short-time spectra and back, mel bands, one rate, one loudness.

Sounds are mono, float32 in [-1, 1], at ``RATE`` samples a second wherever this room makes or judges
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.forensics.clips import need_decoder, say_reason
from stillroom.forensics.extras import need

__all__ = [
    "RATE",
    "SOUNDS",
    "Wave",
    "Waves",
    "fit_length",
    "from_spectrum",
    "level",
    "load_wave",
    "mel_bands",
    "name_coding",
    "read_codec",
    "read_parts",
    "resample",
    "to_spectrum",
]

RATE = 16_000
LONGEST_S = 600.0
_LOSSLESS = frozenset({"flac", "alac", "ape", "tta", "tak", "wavpack", "wmalossless"})
SOUNDS = frozenset(
    [
        *(".wav", ".mp3", ".flac", ".m4a", ".ogg", ".oga", ".opus", ".aac"),
        *(".aif", ".aiff", ".amr", ".wma"),
    ]
)
"""Endings of what is read as a recording."""

Waves = npt.NDArray[np.float32]
Spectrum = npt.NDArray[np.complex128]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Wave:
    """A recording at ``RATE``: values (N,), its name, who speaks, and the digest of its file.

    ``codings`` are how the files it is cut from are coded, as ``name_coding`` says; empty: drawn.
    """

    values: Waves
    name: str
    identity: str
    digest: str
    codings: tuple[str, ...] = ()


def name_coding(codec: str) -> str:
    """Return how a decoder's sound is coded: ``lossless``, or the name of what loses some."""
    lossless = codec.startswith("pcm_") or codec in _LOSSLESS
    return "lossless" if lossless else codec.removesuffix("float")


def read_codec(path: Path) -> str:
    """Return the decoder's name of a file's first audio track; empty if it cannot be opened."""
    import av

    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            streams = container.streams.audio
            return str(streams[0].codec_context.name) if streams else ""
    except (av.FFmpegError, ValueError):
        return ""


def to_spectrum(values: Waves, length: int, hop: int) -> Spectrum:
    """Return the short-time spectrum, (frames, length // 2 + 1), frames centered on every hop."""
    padded = np.pad(values.astype(np.float64), length // 2, mode="reflect")
    count = 1 + (len(padded) - length) // hop
    at = np.arange(length)[None] + hop * np.arange(count)[:, None]
    return np.asarray(np.fft.rfft(padded[at] * _window(length)), dtype=np.complex128)


def from_spectrum(spectrum: Spectrum, length: int, hop: int, count: int) -> Waves:
    """Return the sound of ``count`` values whose short-time spectrum comes nearest.

    Source: Griffin and Lim 1984, "Signal estimation from modified short-time Fourier transform",
    IEEE TASSP 32(2), equation 6.
    """
    window = _window(length)
    frames = np.fft.irfft(spectrum, length) * window
    size = length + hop * (len(frames) - 1)
    total, weight = np.zeros(size), np.zeros(size)
    for number, frame in enumerate(frames):
        total[number * hop : number * hop + length] += frame
        weight[number * hop : number * hop + length] += window**2
    whole = total / np.maximum(weight, 1e-8)
    found = whole[length // 2 : length // 2 + count]
    return np.asarray(np.pad(found, (0, max(count - len(found), 0))), dtype=np.float32)


def mel_bands(bands: int, length: int, *, low: float = 0.0, high: float = RATE / 2) -> Floats:
    """Return triangular filters over a spectrum, (bands, length // 2 + 1), evenly on the mel scale.

    Source: O'Shaughnessy 1987, 2595 log10(1 + f / 700).
    """
    edges = np.linspace(_to_mel(low), _to_mel(high), bands + 2)
    places = 700 * (10 ** (edges / 2595) - 1)
    frequency = np.linspace(0, RATE / 2, length // 2 + 1)
    left, middle, right = places[:-2, None], places[1:-1, None], places[2:, None]
    rising = (frequency - left) / (middle - left)
    falling = (right - frequency) / (right - middle)
    return np.asarray(np.maximum(np.minimum(rising, falling), 0.0))


def resample(values: Waves, before: float, after: float) -> Waves:
    """Return a sound at another rate: band-limited by its spectrum, as one piece."""
    count = round(len(values) * after / before)
    if count == len(values) or not len(values):
        return values
    spectrum = np.fft.rfft(values.astype(np.float64))
    wanted = count // 2 + 1
    fitted = np.zeros(wanted, dtype=np.complex128)
    kept = min(wanted, len(spectrum))
    fitted[:kept] = spectrum[:kept]
    return np.asarray(np.fft.irfft(fitted, count) * (count / len(values)), dtype=np.float32)


def fit_length(values: Waves, count: int, start: int = 0) -> Waves:
    """Return ``count`` values from ``start`` on; a sound that is shorter is repeated."""
    if len(values) - start >= count:
        return np.ascontiguousarray(values[start : start + count])
    times = -(-count // max(len(values), 1))
    return np.ascontiguousarray(np.tile(values, times)[:count])


def level(values: Waves, peak: float = 0.7) -> Waves:
    """Return the sound at a peak; silence stays silent."""
    most = float(np.abs(values).max(initial=0.0))
    return np.asarray(values * (peak / most) if most > 0 else values, dtype=np.float32)


def load_wave(path: Path, *, longest_s: float = LONGEST_S) -> Waves:
    """Return a file's first audio track, mono at ``RATE``.

    Raises:
        DataError: If it holds none, is longer than ``longest_s``, or cannot be decoded.
    """
    parts: list[Waves] = []
    count = 0
    for part in read_parts(path):
        parts.append(part)
        count += len(part)
        if count > longest_s * RATE:
            raise _refused(path, f"is longer than {longest_s:.0f} s", "a shorter recording")
    return np.concatenate(parts)


def read_parts(path: Path) -> Iterator[Waves]:
    """Yield a file's first audio track in parts of some hundredths of a second.

    Raises:
        DataError: If it holds none, or nothing of it can be decoded.
    """
    need("av")
    import av

    found = 0
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise _refused(path, "holds no sound", "a file with an audio track")
            need_decoder(path, container.streams.audio[0], "sound")
            resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
            try:
                for frame in container.decode(audio=0):
                    for part in resampler.resample(frame):
                        found += part.samples
                        yield np.asarray(part.to_ndarray(), np.float32).reshape(-1)
                for part in resampler.resample(None):
                    yield np.asarray(part.to_ndarray(), np.float32).reshape(-1)
            except av.FFmpegError:
                if not found:
                    raise
    except DataError:
        raise
    except (av.FFmpegError, ValueError) as error:
        said = say_reason(error)
        raise _refused(path, f"is damaged, or no recording: {said}", "a whole file") from error
    if not found:
        raise _refused(path, "holds no sound that can be decoded", "a whole file")


def _window(length: int) -> Floats:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


def _to_mel(frequency: float) -> float:
    return float(2595 * np.log10(1 + frequency / 700))


def _refused(path: Path, what: str, expected: str) -> DataError:
    return DataError(
        f"{path.name} {what}",
        code="forensics.clip",
        where=str(path),
        expected=expected,
        next="convert it, or leave it out",
    )
