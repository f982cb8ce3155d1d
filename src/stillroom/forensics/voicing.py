"""Voices drawn by program: nobody's, without end, from a seed alone.

Harmonics of a gliding pitch under the resonances of vowels, with breath and pauses. They say
nothing and are no recordings: what they are for is to try every step without a person.

Source: Fant 1960, "Acoustic Theory of Speech Production" (a source and a filter); vowels' formants
after Peterson and Barney 1952.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stillroom.forensics.waves import RATE, Wave, Waves, level
from stillroom.provenance import digest_bytes

__all__ = ["draw_voice", "name_voice"]

_VOWELS = np.array(
    [
        [270, 2290, 3010],
        [390, 1990, 2550],
        [530, 1840, 2480],
        [660, 1720, 2410],
        [730, 1090, 2440],
        [570, 840, 2410],
        [440, 1020, 2240],
        [300, 870, 2240],
        [640, 1190, 2390],
    ],
    dtype=np.float64,
)
_WIDTHS = np.array([80.0, 110.0, 160.0])
_HARMONICS = 48

Floats = npt.NDArray[np.float64]


def draw_voice(seed: int, number: int, seconds: float = 4.0) -> Wave:
    """Draw a voice.

    Args:
        seed: Of the set.
        number: Which of the set; voices come in threes of one speaker.
        seconds: How long.
    """
    speaker = np.random.default_rng([seed, number // 3, 0x5901CE])
    rng = np.random.default_rng([seed, number, 0x901CE])
    pitch, tract = float(speaker.uniform(90, 230)), float(speaker.uniform(0.88, 1.18))
    tilt, breath = float(speaker.uniform(0.9, 1.5)), float(speaker.uniform(0.004, 0.02))
    count = round(seconds * RATE)
    syllables = max(round(seconds * float(rng.uniform(2.8, 4.2))), 1)
    formants = _glide(_VOWELS[rng.integers(len(_VOWELS), size=syllables)] * tract, count)
    tune = pitch * (1 + 0.18 * _glide(rng.normal(0, 1, (syllables, 1)), count)[:, 0])
    tune *= 1 + 0.006 * np.cumsum(rng.normal(0, 1, count)) / np.sqrt(count)
    phase = 2 * np.pi * np.cumsum(tune) / RATE
    loud = _loudness(syllables, count, rng)
    values = np.zeros(count)
    for harmonic in range(1, _HARMONICS + 1):
        frequency = harmonic * tune
        gain = _resonate(frequency, formants) / harmonic**tilt
        gain[frequency > RATE / 2 - 200] = 0
        values += gain * np.sin(harmonic * phase + float(rng.uniform(0, 2 * np.pi)))
    values *= loud / max(float(np.abs(values).max()), 1e-9)
    noise = rng.normal(0, 1, count)
    values += breath * (0.15 + loud) * np.diff(noise, prepend=0.0) + rng.normal(0, 5e-4, count)
    made = level(np.asarray(values, dtype=np.float32))
    return Wave(made, f"drawn-voice-{seed}-{number}", name_voice(seed, number), _digest(made))


def name_voice(seed: int, number: int) -> str:
    """Return whose voice a drawn one is."""
    return f"drawn-speaker-{seed}-{number // 3}"


def _digest(values: Waves) -> str:
    return digest_bytes(values.tobytes())


def _glide(targets: Floats, count: int) -> Floats:
    """Return a smooth course through targets, (count, D)."""
    places = np.linspace(0, 1, len(targets)) if len(targets) > 1 else np.zeros(1)
    time = np.linspace(0, 1, count)
    columns = [np.interp(time, places, targets[:, at]) for at in range(targets.shape[1])]
    width = max(count // (len(targets) * 6), 1)
    kernel = np.hanning(width + 2)[1:-1]
    kernel /= kernel.sum()
    smooth = [
        np.convolve(np.pad(column, width, mode="edge"), kernel, mode="same")[width : width + count]
        for column in columns
    ]
    return np.stack(smooth, axis=1)


def _loudness(syllables: int, count: int, rng: np.random.Generator) -> Floats:
    """Return a rise and fall a syllable, some left out as pauses."""
    heights = rng.uniform(0.5, 1.0, syllables) * (rng.random(syllables) > 0.12)
    time = np.linspace(0, syllables, count, endpoint=False)
    bump = np.sin(np.pi * (time % 1.0)) ** 0.6
    return np.asarray(heights[time.astype(int)] * bump)


def _resonate(frequency: Floats, formants: Floats) -> Floats:
    """Return how strongly a tract lets a frequency through, at every instant."""
    found = np.zeros(len(frequency))
    for at, width in enumerate(_WIDTHS):
        found += 0.8**at / (1 + ((frequency - formants[:, at]) / width) ** 2)
    return found + 0.01
