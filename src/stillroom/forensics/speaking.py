"""Running eSpeak NG: text in, sound out. Without the program nothing is spoken."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave

import numpy as np

from stillroom.errors import DataError, MissingExtraError
from stillroom.forensics.waves import RATE, Waves, resample

__all__ = ["speak"]

_LONGEST_S = 60.0


def speak(text: str, program: str, *, voice: str, pitch: int, pace: int) -> Waves:
    """Return text spoken by eSpeak NG, mono at ``waves.RATE``.

    Args:
        text: Plain words; they are given on standard input, never on a command line.
        program: Its name or path.
        voice: One of its voices.
        pitch: 0 to 99.
        pace: Words a minute.

    Raises:
        MissingExtraError: If the program is not installed.
        DataError: If it spoke nothing.
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
        done = subprocess.run(  # noqa: S603  # the user's own program, text on its standard input
            words, input=text.encode(), capture_output=True, timeout=_LONGEST_S, check=True
        )
        with wave.open(io.BytesIO(done.stdout)) as file:
            rate = file.getframerate()
            data = done.stdout[44:]  # its header states no length where it writes to a pipe
    except (subprocess.SubprocessError, OSError, wave.Error, EOFError) as error:
        raise DataError(
            f"{program} did not speak: {error}",
            code="forensics.speaking",
            expected=f"the voice {voice}",
            next=f"{program} --voices lists the voices that are installed",
        ) from error
    values = np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2") / 32768
    return resample(np.asarray(values, dtype=np.float32), rate, RATE)
