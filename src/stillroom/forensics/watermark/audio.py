"""Inaudible audio watermark: 32 bits in the loudness of time-frequency cells.

Time is cut into cells of 64 ms, the band from 300 to 5300 Hz into strips of 62.5 Hz. A keyed sign
pattern makes each cell a little louder or quieter; it repeats every 64 cells (4.1 s). 32 bits with
a keyed 24-bit check go through the same convolutional code as the image watermark, each coded bit
over some 33 cells of every 4.1 s; a fifth of the cells is a pilot, which locates the time offset
after a cut. Embedding is informed: the host signal's own contribution to each bit is measured, and
just enough is changed to bring all bits to one margin.

**False positives.** The 24-bit keyed check of an unmarked signal matches by chance with probability
2**-24 per decoding. One reading decodes eight candidate offsets: 5e-7 per reading, not per file.
Readings of a long recording segment by segment add up: ``AudioWatermarkResult.decodings`` is the
number of decodings.

Not robust against changes of speed or pitch, room echoes, signals below some 3 seconds, or anyone
who has the key.

Source: Cox et al. 1997, "Secure spread spectrum watermarking for multimedia", IEEE TIP 6(12);
Yeo and Kim 2003, "Modified patchwork algorithm", IEEE TSAP 11(4) (loudness of pieces); Miller et
al. 2004, IEEE TIP 13(6) (informed embedding).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.forensics.interfaces import MIN_WATERMARK_SECONDS
from stillroom.forensics.media.audio import SAMPLE_RATE, AudioSamples, compute_stft, invert_stft
from stillroom.forensics.watermark.error_correction import (
    CHECK_BITS,
    PayloadCode,
    assign_chips,
    compute_coded_length,
)

__all__ = [
    "AUDIO_FALSE_MATCH_RATE",
    "AUDIO_PAYLOAD_BITS",
    "MIN_WATERMARK_SECONDS",
    "AudioWatermark",
    "AudioWatermarkResult",
    "measure_snr",
]

AUDIO_PAYLOAD_BITS = 32
AUDIO_FALSE_MATCH_RATE = 2.0**-CHECK_BITS
"""Probability per decoding that an unmarked signal passes the check."""

_CODED = compute_coded_length(AUDIO_PAYLOAD_BITS + CHECK_BITS)
_LOUDER = (0.0, 2.0, 4.0, 6.0)  # dB, tried in order
_CELL = 1024  # samples: 64 ms
_HOP = 128  # samples between the candidate offsets
_PHASES = _CELL // _HOP
_STEP = 256  # samples between the STFT frames that are modified
_STRIPS, _FIRST, _WIDE = 80, 19, 4  # strips of 4 bins of 15.6 Hz, from bin 19
_PERIOD = 64
_PILOT_SHARE = 0.2
_MAX_DB = 8.0
_NOISE_DB = 20.0
_EVEN = 0.45
_ROUNDS = 4
_CLIP = 2.0
_PLACES = 8
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AudioWatermarkResult:
    """Result of a reading: payload (None without a mark of this key), pilot z-score, decodings.

    ``decodings`` is the number of decodings, each with ``AUDIO_FALSE_MATCH_RATE``.
    """

    payload: int | None
    z: float
    decodings: int = 0


@dataclass(frozen=True)
class _Plan:
    """Keyed pattern for each cell of a period and strip: sign, and coded bit (-1: pilot)."""

    signs: Floats
    bit: npt.NDArray[np.intp]


class AudioWatermark:
    """Embed and read the watermark of one key in audio at ``SAMPLE_RATE``."""

    def __init__(self, key: bytes) -> None:
        """Use the lab's key; audio derives another pattern from it than images do."""
        self._code = PayloadCode(key, AUDIO_PAYLOAD_BITS, b"sound")
        self._plan = _make_plan(key)

    def embed(self, values: AudioSamples, payload: int, *, snr: float = 20.0) -> AudioSamples:
        """Embed a payload and return the watermarked audio.

        Args:
            values: Mono, (N,), at ``SAMPLE_RATE``; at least 3 seconds.
            payload: Below 2**32.
            snr: Signal-to-watermark ratio in dB; the watermark follows the signal's loudness. Where
                it cannot be read back, as with some keys, it is made up to 6 dB louder.

        Raises:
            DataError: If the audio is too short, or the watermark cannot be read back.
        """
        if len(values) < MIN_WATERMARK_SECONDS * SAMPLE_RATE:
            raise DataError(
                f"audio of {len(values) / SAMPLE_RATE:.1f} s is too short to carry a watermark",
                code="forensics.too-short",
                expected=f"at least {MIN_WATERMARK_SECONDS:.0f} s",
                next="make it longer: seconds=4",
            )
        directions = self._compute_directions(payload, len(values) // _CELL)
        for louder in _LOUDER:
            marked = self._raise_margins(values, directions, snr - louder)
            if self.read(marked).payload == payload:
                return marked
        raise DataError(
            "the watermark cannot be read back from this audio",
            code="forensics.mark-failed",
            expected="audio that is not nearly all silence",
            next="remove it, or use a longer recording",
        )

    def read(self, values: AudioSamples) -> AudioWatermarkResult:
        """Read the watermark of this key, at any time offset."""
        if len(values) < _CELL * 8:
            return AudioWatermarkResult(None, 0.0)
        fine = _loudness(values, _HOP)
        candidates = sorted(self._locate(fine), reverse=True)[:_PLACES]
        best = candidates[0][0]
        for number, (_, phase, shift) in enumerate(candidates, start=1):
            payload = self._decode(_whiten(fine[phase::_PHASES]), shift)
            if payload is not None:
                return AudioWatermarkResult(payload, best, number)
        return AudioWatermarkResult(None, best, len(candidates))

    def _locate(self, fine: Floats) -> list[tuple[float, int, int]]:
        """Return the pilot correlation for the best shifts of each phase."""
        pilot = np.where(self._plan.bit < 0, self._plan.signs, 0.0)
        candidates = []
        for phase in range(_PHASES):
            cells = _whiten(fine[phase::_PHASES])
            # Sum all periods, (period, strips).
            folded = np.zeros((_PERIOD, cells.shape[1]))
            for begin in range(0, len(cells), _PERIOD):
                part = cells[begin : begin + _PERIOD]
                folded[: len(part)] += part
            spectrum = np.conj(np.fft.fft(folded, axis=0)) * np.fft.fft(pilot, axis=0)
            surface = np.fft.ifft(spectrum, axis=0).real.sum(axis=1)  # by shift
            spread = math.sqrt(float((cells**2).mean()) * float((pilot != 0).sum())) or 1.0
            spread *= math.sqrt(max(len(cells) / _PERIOD, 1e-9))
            order = np.argsort(surface)[::-1][:2]
            candidates += [(float(surface[shift]) / spread, phase, int(shift)) for shift in order]
        return candidates

    def _decode(self, cells: Floats, shift: int) -> int | None:
        rows = (np.arange(len(cells)) + shift) % _PERIOD
        return self._code.decode(cells * self._plan.signs[rows], self._plan.bit[rows])

    def _compute_directions(self, payload: int, cells: int) -> Floats:
        """Return the direction of each cell and strip: louder (1) or quieter (-1)."""
        directions = self._plan.signs * self._code.spread(payload, self._plan.bit)
        return np.asarray(directions[np.arange(cells) % _PERIOD])

    def _raise_margins(self, values: AudioSamples, directions: Floats, snr: float) -> AudioSamples:
        """Modify the audio until all bits reach one margin at the requested ratio."""
        rows = np.arange(len(directions)) % _PERIOD
        group = np.where(self._plan.bit[rows] < 0, _CODED, self._plan.bit[rows])
        counts = np.maximum(np.bincount(group.ravel(), minlength=_CODED + 1), 1)
        amount = np.full(_CODED + 1, 1.5)
        power = float(np.sum(values.astype(np.float64) ** 2)) / 10 ** (snr / 10)
        room = _compute_headroom(values)[: len(directions)]
        noise = _make_noise(values)
        initial = self._margins(values + noise, directions, group) / counts
        marked = values
        for step in range(_ROUNDS):
            added = _change(values, directions * np.minimum(room * amount[group], _MAX_DB)) - values
            size = float(np.sum(added.astype(np.float64) ** 2))
            scale = math.sqrt(power / size) if size > 0 else 0.0
            marked = np.asarray(np.clip(values + scale * added, -1, 1), dtype=np.float32)
            if step == _ROUNDS - 1:
                break
            reached = self._margins(marked + noise, directions, group) / counts
            gained = max(float((reached - initial).mean() / amount.mean()), 1e-6)
            short = np.clip((reached.mean() - reached) / gained, -1.5, 1.5)
            amount = np.clip(amount + 0.7 * short, 0.05, _MAX_DB)
        return marked

    def _margins(
        self, values: AudioSamples, directions: Floats, group: npt.NDArray[np.intp]
    ) -> Floats:
        cells = _whiten(_loudness(values, _CELL))[: len(directions)]
        spoken = (cells * directions[: len(cells)]).ravel()
        sums = np.bincount(group[: len(cells)].ravel(), weights=spoken, minlength=_CODED + 1)
        return np.asarray(sums, dtype=np.float64)


def _make_noise(values: AudioSamples) -> AudioSamples:
    """Return noise 20 dB below the signal, under which margins are measured."""
    strength = math.sqrt(float(np.mean(values.astype(np.float64) ** 2)) / 10 ** (_NOISE_DB / 10))
    rng = np.random.default_rng(len(values))
    return np.asarray(rng.normal(0, strength, len(values)), dtype=np.float32)


def _compute_headroom(values: AudioSamples) -> Floats:
    """Return the permitted change of each cell, relative to the mean: larger if quiet."""
    loud = _loudness(values, _CELL)
    return np.asarray(np.clip(10 ** (-_EVEN * (loud - loud.mean()) / 20), 0.3, 4.0))


def measure_snr(values: AudioSamples, marked: AudioSamples) -> float:
    """Return the ratio of a signal to its change in dB; infinite if unchanged."""
    change = float(np.sum((marked.astype(np.float64) - values) ** 2))
    signal_power = float(np.sum(values.astype(np.float64) ** 2))
    return math.inf if change == 0 else 10 * math.log10(max(signal_power, 1e-12) / change)


def _loudness(values: AudioSamples, hop: int) -> Floats:
    """Return the loudness in dB of each strip at each position, (positions, strips).

    Positions are the middles of cells, the first half a cell from the start.
    """
    inner, first = values[: len(values) // hop * hop], (_CELL // 2) // hop
    if hop == _CELL:
        # frames lie at whole cells; their middles are half a cell further
        inner = np.concatenate([values[_CELL // 2 :], np.zeros(_CELL // 2, np.float32)])
    power = np.abs(compute_stft(inner, _CELL, hop)[:, _FIRST : _FIRST + _STRIPS * _WIDE]) ** 2
    strips = power.reshape(len(power), _STRIPS, _WIDE).sum(axis=2)
    floor = 1e-4 * float(strips.mean()) + 1e-9
    return np.asarray(10 * np.log10(strips[first:] + floor))


def _whiten(cells: Floats) -> Floats:
    """Subtract the loudness of neighboring cells, normalize the spread, and clip."""
    padded = np.pad(cells, ((1, 1), (2, 2)), mode="edge")
    around = (padded[:-2, 2:-2] + padded[2:, 2:-2]) / 4
    around += (padded[1:-1, :-4] + padded[1:-1, 1:-3] + padded[1:-1, 3:-1] + padded[1:-1, 4:]) / 8
    apart = cells - around
    spread = np.sqrt((apart**2).mean(axis=1, keepdims=True)) + 1.0
    return np.asarray(np.clip(apart / spread, -_CLIP, _CLIP))


def _change(values: AudioSamples, decibels: Floats) -> AudioSamples:
    """Change the loudness of each cell by a number of dB."""
    spectrum = compute_stft(values, _CELL, _STEP)
    cell = np.minimum(np.arange(len(spectrum)) * _STEP // _CELL, len(decibels) - 1)
    gain = 10 ** (decibels[cell] / 20)
    spectrum[:, _FIRST : _FIRST + _STRIPS * _WIDE] *= gain.repeat(_WIDE, axis=1)
    return invert_stft(spectrum, _CELL, _STEP, len(values))


@lru_cache(maxsize=4)
def _make_plan(key: bytes) -> _Plan:
    label = b"stillroom sound mark 1" + key
    signs, bit = assign_chips(label, _PERIOD * _STRIPS, _PILOT_SHARE, _CODED)
    return _Plan(signs.reshape(_PERIOD, _STRIPS), bit.reshape(_PERIOD, _STRIPS))
