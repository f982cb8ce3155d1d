"""Sounds as files, for tests."""

import wave

from stillroom.forensics.media.audio import SAMPLE_RATE


def write_sound(path, values):
    """Write values as a plain WAV, its folders too, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((values * 32767).astype("<i2").tobytes())
    return path
