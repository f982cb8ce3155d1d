"""Source voices: procedurally generated, or recordings covered by consent.

Drawn voices are harmonics of a gliding pitch under vowel resonances, with breath and pauses. They
contain no speech and are not recordings: they serve to try every step without a person.

Source: Fant 1960, "Acoustic Theory of Speech Production" (a source and a filter); vowels' formants
after Peterson and Barney 1952.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.forensics.media.audio import (
    AUDIO_SUFFIXES,
    SAMPLE_RATE,
    AudioSamples,
    Waveform,
    fit_length,
    load_waveform,
    name_codec,
    normalize_peak,
    read_codec,
)
from stillroom.forensics.media.file_types import list_files
from stillroom.forensics.settings import DetectorSource, DrawnSource, SetVoices
from stillroom.forensics.synthesis.consent import require_consent, require_synthetic_audio
from stillroom.forensics.synthesis.pairing import derive_person_id
from stillroom.provenance import digest_bytes

__all__ = ["VoiceSource", "draw_voice", "list_recordings", "name_drawn_voice", "open_voices"]


@dataclass(frozen=True)
class VoiceSource:
    """Waveforms of one length, and their origin (``drawn``, ``synthetic: GENERATOR``, ``person``).

    ``num_skipped`` is the number of recordings that could not be used.
    """

    waves: tuple[Waveform, ...]
    origin: str
    consent: str = ""
    num_skipped: int = 0


def open_voices(
    settings: SetVoices | DetectorSource,
    uses: Sequence[str],
    *,
    seconds: float,
    seed: int,
    count: int,
    warn: Callable[[str], None],
) -> VoiceSource:
    """Open the source voices, each ``seconds`` long.

    Recordings of one speaker (one folder) are concatenated and cut anew; the name of a single file
    is its speaker.

    Raises:
        DataError: If the folder has no recording, the consent does not cover the use, or files
            declared synthetic were recorded.
    """
    if isinstance(settings, DrawnSource):
        voices = tuple(draw_voice(seed, number, seconds) for number in range(count))
        return VoiceSource(voices, "drawn")
    folder = Path(settings.folder)
    paths = list_recordings(folder)
    origin, consent = require_consent(
        settings, paths, uses, refuse=require_synthetic_audio, warn=warn
    )
    codings = tuple(sorted({name_codec(codec) for path in paths if (codec := read_codec(path))}))
    speakers: dict[str, list[Path]] = {}
    for path in paths:
        speakers.setdefault(derive_person_id(path, folder), []).append(path)
    skipped: list[str] = []
    length = round(seconds * SAMPLE_RATE)
    waiting = deque(_cut(*speaker, length, codings, skipped) for speaker in speakers.items())
    waves: list[Waveform] = []
    while waiting and len(waves) < count:  # speakers in turn, so that a count includes each of them
        pieces = waiting.popleft()
        if (wave := next(pieces, None)) is not None:
            waves.append(wave)
            waiting.append(pieces)
    for problem in skipped:
        warn(f"skipped: {problem}")
    if not waves:
        raise _missing_voices(folder, "has no recording that can be decoded")
    if skipped:
        warn(f"{len(skipped)} of {len(paths)} recordings were skipped")
    return VoiceSource(tuple(waves), origin, consent, len(skipped))


def list_recordings(path: Path) -> list[Path]:
    """Return the recordings below a folder, sorted, or the named one.

    Raises:
        DataError: If there is none.
    """
    files = list_files(path, AUDIO_SUFFIXES)
    if not files:
        raise _missing_voices(path, "has no recordings")
    return files


def _cut(
    speaker: str, paths: Sequence[Path], length: int, codings: tuple[str, ...], skipped: list[str]
) -> Iterator[Waveform]:
    """Yield segments of one length of a speaker's recordings, each decoded when it is needed.

    What is shorter in all is repeated. Why a recording was skipped is added to ``skipped``.
    """
    rest, number = np.zeros(0, np.float32), 0
    for path in paths:
        try:
            rest = np.concatenate([rest, load_waveform(path)])
        except DataError as error:
            skipped.append(error.problems[0].what)
        while len(rest) >= length:
            yield _name_segment(rest[:length].copy(), speaker, number, codings)
            rest, number = rest[length:], number + 1
    if len(rest) and not number:
        yield _name_segment(fit_length(rest, length), speaker, number, codings)


def _name_segment(
    samples: AudioSamples, speaker: str, number: int, codings: tuple[str, ...]
) -> Waveform:
    return Waveform(samples, f"{speaker}-{number}", speaker, _digest(samples), codings)


def _missing_voices(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path} {problem}",
        code="forensics.no-voices",
        where=str(path),
        expected=f"files ending in {' '.join(sorted(AUDIO_SUFFIXES))}",
        next="check the path, or set voices: {type: drawn}",
    )


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


def draw_voice(seed: int, number: int, seconds: float = 4.0) -> Waveform:
    """Draw a voice."""
    speaker = np.random.default_rng([seed, number // 3, 0x5901CE])
    rng = np.random.default_rng([seed, number, 0x901CE])
    pitch, tract = float(speaker.uniform(90, 230)), float(speaker.uniform(0.88, 1.18))
    tilt, breath = float(speaker.uniform(0.9, 1.5)), float(speaker.uniform(0.004, 0.02))
    count = round(seconds * SAMPLE_RATE)
    syllables = max(round(seconds * float(rng.uniform(2.8, 4.2))), 1)
    formants = _glide(_VOWELS[rng.integers(len(_VOWELS), size=syllables)] * tract, count)
    tune = pitch * (1 + 0.18 * _glide(rng.normal(0, 1, (syllables, 1)), count)[:, 0])
    tune *= 1 + 0.006 * np.cumsum(rng.normal(0, 1, count)) / np.sqrt(count)
    phase = 2 * np.pi * np.cumsum(tune) / SAMPLE_RATE
    # A loudness envelope with one bump per syllable, some dropped as pauses.
    heights = rng.uniform(0.5, 1.0, syllables) * (rng.random(syllables) > 0.12)
    time = np.linspace(0, syllables, count, endpoint=False)
    bump = np.sin(np.pi * (time % 1.0)) ** 0.6
    loud = np.asarray(heights[time.astype(int)] * bump)
    values = np.zeros(count)
    for harmonic in range(1, _HARMONICS + 1):
        frequency = harmonic * tune
        gain = _resonate(frequency, formants) / harmonic**tilt
        gain[frequency > SAMPLE_RATE / 2 - 200] = 0
        values += gain * np.sin(harmonic * phase + float(rng.uniform(0, 2 * np.pi)))
    values *= loud / max(float(np.abs(values).max()), 1e-9)
    noise = rng.normal(0, 1, count)
    values += breath * (0.15 + loud) * np.diff(noise, prepend=0.0) + rng.normal(0, 5e-4, count)
    samples = normalize_peak(np.asarray(values, dtype=np.float32))
    return Waveform(
        samples, f"drawn-voice-{seed}-{number}", name_drawn_voice(seed, number), _digest(samples)
    )


def name_drawn_voice(seed: int, number: int) -> str:
    """Return the speaker of a drawn voice."""
    return f"drawn-speaker-{seed}-{number // 3}"


def _digest(values: AudioSamples) -> str:
    return digest_bytes(values.tobytes())


def _glide(targets: Floats, count: int) -> Floats:
    """Interpolate targets to a smooth curve, (count, D)."""
    positions = np.linspace(0, 1, len(targets)) if len(targets) > 1 else np.zeros(1)
    time = np.linspace(0, 1, count)
    columns = [
        np.interp(time, positions, targets[:, column_index])
        for column_index in range(targets.shape[1])
    ]
    width = max(count // (len(targets) * 6), 1)
    kernel = np.hanning(width + 2)[1:-1]
    kernel /= kernel.sum()
    smooth = [
        np.convolve(np.pad(column, width, mode="edge"), kernel, mode="same")[width : width + count]
        for column in columns
    ]
    return np.stack(smooth, axis=1)


def _resonate(frequency: Floats, formants: Floats) -> Floats:
    """Return the gain of the vocal tract at a frequency, for every sample."""
    gain = np.zeros(len(frequency))
    for formant, width in enumerate(_WIDTHS):
        gain += 0.8**formant / (1 + ((frequency - formants[:, formant]) / width) ** 2)
    return gain + 0.01
