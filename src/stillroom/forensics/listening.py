"""Detectors before a recording: each run of seconds scored, and the whole, as faces are over time.

A run is scored as it is, after MP3, and with a little noise. Runs that are nearly silent are passed
over, and of a long recording so many that at most 48 are heard, evenly over it; how many is noted
with the finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stillroom.forensics.concluding import Scores, conclude
from stillroom.forensics.detecting import TrainedDetector
from stillroom.forensics.findings import Course
from stillroom.forensics.sound_views import add_noise, code_sound
from stillroom.forensics.sounds import Sound
from stillroom.forensics.waves import RATE, Waves, name_coding, read_parts

__all__ = ["listen"]

_MOST_RUNS = 48
_SILENT = 10 ** (-50 / 20)
_NARROW = 4100.0
_REST = 0.05  # seconds; less than that is lost in resampling


def listen(
    detectors: Sequence[TrainedDetector], path: Path, sound: Sound, prevalence: float
) -> tuple[Course, ...]:
    """Return what each detector of sounds makes of a recording.

    Args:
        detectors: Those that hear.
        path: The file; its first audio track is heard.
        sound: What was found of it before.
        prevalence: Share of forgeries among such files.

    Raises:
        DataError: If nothing of it can be decoded.
    """
    return tuple(_hear(detector, path, sound, prevalence) for detector in detectors)


def _hear(detector: TrainedDetector, path: Path, sound: Sound, prevalence: float) -> Course:
    length = detector.about.pixels
    every = max(-(-int(sound.duration * RATE) // (length * _MOST_RUNS)), 1)
    scores = Scores()
    silent, between, heard = 0, 0, 0
    for number, run in enumerate(_runs(path, length)):
        heard += len(run)
        if number % every:
            between += 1
        elif float(np.sqrt(np.mean(run**2))) < _SILENT:
            silent += 1
        else:
            views = [run, code_sound(run, "mp3", 64_000), add_noise(run, 35.0, _lot(number))]
            scores.add([number * length / RATE], detector.see(views))
    return conclude(
        detector,
        0,
        scores,
        prevalence=prevalence,
        reasons=_doubts(detector, sound),
        nothing="nothing but silence was heard",
        notes=_left_out(length / RATE, between, silent, sound.duration - heard / RATE),
    )


def _left_out(seconds: float, between: int, silent: int, rest: float) -> list[str]:
    """Return what of a recording was not heard, a clause each."""
    found = []
    counts = {"between those heard": between, "nearly silent": silent}
    for which, count in counts.items():
        if count:
            runs = f"{count} run{'' if count == 1 else 's'} of {seconds:g} s"
            found.append(f"passed over {runs} {which}")
    if rest >= _REST:
        found.append(f"the last {rest:.1f} s, too short for a run, not heard")
    return found


def _runs(path: Path, length: int) -> Iterator[Waves]:
    """Yield runs of one length; a last one that is shorter by less than half is yielded too."""
    waiting: list[Waves] = []
    have, found = 0, 0
    for part in read_parts(path):
        waiting.append(part)
        have += len(part)
        while have >= length:
            whole = np.concatenate(waiting)
            yield np.ascontiguousarray(whole[:length])
            found += 1
            waiting, have = [whole[length:]], have - length
    if have and (have >= length // 2 or not found):
        yield np.concatenate(waiting)


def _doubts(detector: TrainedDetector, sound: Sound) -> list[str]:
    found = list(detector.doubts(float("inf"), None))
    if sound.duration < 0.5 * detector.about.pixels / RATE:
        found.append(f"only {sound.duration:.1f} s of sound")
    figures = dict(detector.about.figures).get("auc", {})
    if sound.band < _NARROW and not (figures.get("telephone", {}).get("low") or 0) > 0.5:
        found.append(f"no energy above {sound.band:.0f} Hz, where it was not shown to work")
    domain = detector.about.domain
    if domain is not None:
        band, coding = min(sound.band, RATE / 2), name_coding(sound.codec)
        found += domain.known.doubts(wide=band, unit="Hz", coding=coding)
    return found


def _lot(number: int) -> np.random.Generator:
    return np.random.default_rng(number)
