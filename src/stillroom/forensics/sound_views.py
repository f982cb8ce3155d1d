"""What a forged sound and its real twin go through alike before a detector hears them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from stillroom.errors import DataError
from stillroom.forensics.extras import need
from stillroom.forensics.method import ForgedSound
from stillroom.forensics.waves import RATE, Waves, resample

__all__ = ["SOUND_CONDITIONS", "add_noise", "code_sound", "draw_sound_view", "even_out"]

_CODECS = {"mp3": ("libmp3lame", "mp3", 44_100), "aac": ("aac", "adts", 44_100)}


def code_sound(values: Waves, codec: str, bits_a_second: int) -> Waves:
    """Return what MP3 or AAC leaves of a sound, of the same length; nothing is written.

    Args:
        values: Mono, (N,), at ``waves.RATE``.
        codec: ``mp3`` or ``aac``.
        bits_a_second: As 64000.

    Raises:
        DataError: If this build of PyAV has no such encoder.
    """
    need("av")
    import av
    from av.audio.stream import AudioStream

    name, container_name, rate = _CODECS[codec]
    out = io.BytesIO()
    try:
        with av.open(out, "w", format=container_name) as container:
            stream = container.add_stream(name, rate=rate)
            if not isinstance(stream, AudioStream):
                raise ValueError(f"{name} is no audio codec")
            stream.bit_rate, stream.layout = bits_a_second, "mono"
            raised = np.ascontiguousarray(resample(values, RATE, rate)[None], np.float32)
            frame = av.AudioFrame.from_ndarray(raised, format="fltp", layout="mono")
            frame.sample_rate = rate
            fitter = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate)
            for part in [*fitter.resample(frame), *fitter.resample(None)]:
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        raise DataError(
            f"a sound cannot be encoded by {name}: {error}",
            code="forensics.sound-coding",
            expected=f"a build of PyAV with {name}",
            next="pip install --force-reinstall av",
        ) from error
    return _decode(out, len(values))


def even_out(forged: ForgedSound) -> ForgedSound:
    """Return a forgery and its twin about zero, as loud as each other.

    Else a resynthesis that is a little louder, or drops a recorder's offset, is told by that alone.
    """
    twin = forged.twin - np.float32(forged.twin.mean())
    values = forged.values - np.float32(forged.values.mean())
    loud, quiet = (float(np.sqrt(np.mean(np.square(one)))) for one in (twin, values))
    if quiet > 0 and loud > 0:
        values = values * np.float32(loud / quiet)
    most = max(float(np.abs(one).max(initial=0.0)) for one in (twin, values))
    share = np.float32(1 / max(most, 1.0))  # both alike, so that neither is clipped
    return replace(forged, values=values * share, twin=twin * share)


def add_noise(values: Waves, decibels: float, rng: np.random.Generator) -> Waves:
    """Return a sound with white noise so many dB below it."""
    power = float(np.mean(values.astype(np.float64) ** 2)) / 10 ** (decibels / 10)
    noisy = values + rng.normal(0, np.sqrt(power), len(values))
    return np.asarray(np.clip(noisy, -1, 1), dtype=np.float32)


def draw_sound_view(
    fake: Waves, real: Waves, coded: float, rng: np.random.Generator
) -> tuple[Waves, Waves]:
    """Return a pair after one treatment of both: gain, noise, and a codec for a share ``coded``."""
    gain = float(10 ** (rng.uniform(-12, 0) / 20))
    decibels, lot = float(rng.uniform(18, 45)), int(rng.integers(2**63))
    is_coded = bool(rng.random() < coded)
    codec = ("mp3", "aac")[int(rng.integers(2))]
    bits = int(rng.choice([32_000, 48_000, 64_000, 96_000]))

    def treat(values: Waves) -> Waves:
        out = add_noise(gain * values, decibels, np.random.default_rng(lot))
        return code_sound(out, codec, bits) if is_coded else out

    return treat(fake), treat(real)


def _narrow(values: Waves) -> Waves:
    return resample(resample(values, RATE, 8000), 8000, RATE)[: len(values)]


SOUND_CONDITIONS: Mapping[str, Callable[[Waves], Waves]] = {
    "clean": lambda values: values,
    "mp3_64": lambda values: code_sound(values, "mp3", 64_000),
    "aac_64": lambda values: code_sound(values, "aac", 64_000),
    "noise20": lambda values: add_noise(values, 20.0, np.random.default_rng(len(values))),
    "telephone": _narrow,
}


def _decode(data: io.BytesIO, count: int) -> Waves:
    import av
    from av.container import InputContainer

    data.seek(0)
    parts: list[Waves] = []
    with av.open(data, "r") as coded:
        if not isinstance(coded, InputContainer):
            raise TypeError("a file that was opened for reading is read")
        fitter = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        for frame in coded.decode(audio=0):
            parts += [np.asarray(p.to_ndarray(), np.float32)[0] for p in fitter.resample(frame)]
        parts += [np.asarray(p.to_ndarray(), np.float32)[0] for p in fitter.resample(None)]
    whole = np.concatenate(parts)[:count]
    return np.asarray(np.pad(whole, (0, count - len(whole))), dtype=np.float32)
