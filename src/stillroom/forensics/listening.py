"""Detectors before a recording: each run of seconds scored, and the whole, as faces are over time.

A run is scored as it is, after MP3, and with a little noise; runs that are nearly silent are passed
over, and of a long recording at most so many, evenly over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stillroom.forensics.detecting import TrainedDetector, turns_round
from stillroom.forensics.findings import Course
from stillroom.forensics.sound_views import add_noise, code_sound
from stillroom.forensics.sounds import Sound
from stillroom.forensics.waves import RATE, Waves, read_parts

__all__ = ["listen"]

_MOST_RUNS = 48
_SILENT = 10 ** (-50 / 20)
_NARROW = 4100.0
_TOP_SHARE = 0.2


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
    times: list[float] = []
    rows: list[list[float]] = []
    for number, run in enumerate(_runs(path, length)):
        if number % every or float(np.sqrt(np.mean(run**2))) < _SILENT:
            continue
        times.append(number * length / RATE)
        views = [run, code_sound(run, "mp3", 64_000), add_noise(run, 35.0, _lot(number))]
        rows.append([float(value) for value in detector.logits(views)])
    reasons = _doubts(detector, sound)
    if not rows:
        reasons.append("nothing but silence was heard")
        return Course(
            *(detector.name, detector.fingerprint, 0, (), (), ()),
            *(0.0, 0.0, None, prevalence, tuple(reasons)),
        )
    calibrator, views_of = detector.about.calibrator, np.array(rows)
    chances = calibrator.chances(views_of.mean(axis=0), prevalence)
    reasons += turns_round(chances)
    plain = views_of[:, 0]
    top = np.sort(plain)[-max(round(_TOP_SHARE * len(plain)), 1) :]
    return Course(
        detector.name,
        detector.fingerprint,
        0,
        tuple(times),
        tuple(float(value) for value in plain),
        tuple(float(value) for value in calibrator.chances(plain, prevalence)),
        float(plain.mean()),
        float(top.mean()),
        None if reasons else float(chances[0]),
        prevalence,
        tuple(reasons),
    )


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
    return found


def _lot(number: int) -> np.random.Generator:
    return np.random.default_rng(number)
