"""Running eSpeak NG: text in, sound out. Without the program nothing is spoken."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from typing import Literal

import numpy as np

from stillroom.errors import DataError, MissingExtraError
from stillroom.forensics.waves import RATE, Waves, resample

__all__ = ["Program", "speak"]

Program = Literal["espeak-ng", "espeak"]
_LONGEST_S = 60.0
_HEADER = 44  # bytes; it states no length where the program writes to a pipe


def speak(text: str, program: Program, *, voice: str, pitch: int, pace: int) -> Waves:
    """Return text spoken by eSpeak NG, mono at ``waves.RATE``.

    Args:
        text: Plain words; they are given on standard input, never on a command line.
        program: Which of its two names; nothing else is run.
        voice: One of its voices.
        pitch: 0 to 99.
        pace: Words a minute.

    Raises:
        MissingExtraError: If the program is not installed.
        DataError: If it failed or spoke nothing.
    """
    found = shutil.which(program)
    if found is None:
        raise MissingExtraError(
            f"the program {program} is not here",
            code="extra.missing",
            expected="eSpeak NG, which speaks the synthetic class",
            next="apt-get install espeak-ng, or name other methods under sound.methods",
        )
    words = [found, "--stdout", "--stdin", "-v", voice, "-p", str(pitch), "-s", str(pace)]
    try:
        done = subprocess.run(  # noqa: S603  # one of two names, text on its standard input
            words, input=text.encode(), capture_output=True, timeout=_LONGEST_S, check=True
        )
        with wave.open(io.BytesIO(done.stdout)) as file:
            rate, is_plain = file.getframerate(), file.getsampwidth() == 2
            is_plain = is_plain and file.getnchannels() == 1
    except (subprocess.SubprocessError, OSError, wave.Error, EOFError) as error:
        raise _silent(program, voice, f"did not speak: {error}") from error
    data = done.stdout[_HEADER:]
    if not is_plain or len(data) < 2:
        raise _silent(program, voice, "spoke nothing" if is_plain else "spoke in another format")
    values = np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2") / 32768
    return resample(np.asarray(values, dtype=np.float32), rate, RATE)


def _silent(program: str, voice: str, what: str) -> DataError:
    return DataError(
        f"{program} {what}",
        code="forensics.speaking",
        expected=f"the voice {voice}, as a WAV of 16 bits and one channel",
        next=f"{program} --voices lists the voices that are installed",
    )
