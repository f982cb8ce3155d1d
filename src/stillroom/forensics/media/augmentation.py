"""Augmentation of fake and real pairs for detector training, images and audio.

All randomness comes from the generator passed in. Both images of a pair share each draw, so that
they differ in the forgery only.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.forensics.extras import require_packages
from stillroom.forensics.interfaces import ForgedAudio, ForgedImage
from stillroom.forensics.media.audio import SAMPLE_RATE, AudioSamples, resample
from stillroom.forensics.media.face import Image, Mask
from stillroom.forensics.media.transforms import compress_jpeg, jitter_color
from stillroom.forensics.media.video import apply_video_codec
from stillroom.forensics.settings import AugmentationSettings

__all__ = [
    "AUDIO_CONDITIONS",
    "AugmentedPair",
    "add_noise",
    "apply_audio_codec",
    "augment_audio_pair",
    "augment_clip_pair",
    "augment_pair",
    "center_window",
    "cut_window",
    "match_loudness",
    "to_channels_first",
]


Window = tuple[int, int, int]


Pixels = TypeVar("Pixels", Image, Mask)


@dataclass(frozen=True, eq=False)
class AugmentedPair:
    """A fake, its real twin and the forgery mask: (P, P, 3), (P, P, 3), (P, P)."""

    fake: Image
    real: Image
    mask: Mask


def augment_pair(
    forged: ForgedImage,
    settings: AugmentationSettings,
    pixels: int,
    rng: np.random.Generator,
    *,
    preserve_pixels: bool,
) -> AugmentedPair:
    """Augment a pair for detector training.

    Args:
        forged: The pair, (S, S, 3).
        settings: Augmentation settings.
        pixels: Width and height of the output.
        rng: Source of all randomness.
        preserve_pixels: Crop at the native resolution instead of resizing.
    """
    side = forged.image.shape[0]
    window = _draw_window(side, pixels, settings.crop, rng, preserve_pixels=preserve_pixels)
    flips = settings.flip and bool(rng.random() < 0.5)
    quality = int(rng.integers(settings.least_quality, 101)) if settings.jpeg else 100
    compresses = bool(rng.random() < settings.jpeg)
    seed = int(rng.integers(2**63))

    def show(image: Image) -> Image:
        if settings.colour:
            image = jitter_color(image, np.random.default_rng(seed), strength=settings.colour)
        image = cut_window(image, window, pixels)
        image = np.ascontiguousarray(image[:, ::-1]) if flips else image
        return compress_jpeg(image, quality) if compresses else image

    mask = cut_window(forged.mask, window, pixels)
    return AugmentedPair(show(forged.image), show(forged.twin), mask[:, ::-1] if flips else mask)


def center_window(side: int, pixels: int, *, preserve_pixels: bool) -> Window:
    """Return top, left and side of the centered window used without augmentation."""
    size = min(pixels, side) if preserve_pixels else round(side * 0.94)
    return (side - size) // 2, (side - size) // 2, size


def cut_window(image: Pixels, window: Window, pixels: int) -> Pixels:
    """Crop a window of an image or mask, resized unless it is ``pixels`` wide."""
    top, left, size = window
    cut = np.ascontiguousarray(image[top : top + size, left : left + size])
    if size == pixels:
        return cut
    method = cv2.INTER_AREA if size > pixels else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cut, (pixels, pixels), interpolation=method), dtype=image.dtype)


def to_channels_first(images: list[Image]) -> npt.NDArray[np.float32]:
    """Convert 8-bit images (P, P, 3) or clips (T, P, P, 3) to channels first, in [0, 1].

    Images become (N, 3, P, P), clips (N, T, 3, P, P).
    """
    stacked = np.stack(images).astype(np.float32) / 255.0
    return np.ascontiguousarray(np.moveaxis(stacked, -1, -3))


def augment_clip_pair(
    forged: Sequence[ForgedImage],
    settings: AugmentationSettings,
    pixels: int,
    rng: np.random.Generator,
    *,
    preserve_pixels: bool,
) -> AugmentedPair:
    """Augment a pair of clips, (T, P, P, 3), masks (T, P, P), with one draw for all frames.

    A share ``settings.jpeg`` goes through H.264, fake and real twin alike.
    """
    seed = int(rng.integers(2**63))
    plain = settings.model_copy(update={"jpeg": 0.0})
    views = [
        augment_pair(
            frame, plain, pixels, np.random.default_rng(seed), preserve_pixels=preserve_pixels
        )
        for frame in forged
    ]
    fakes, reals = [view.fake for view in views], [view.real for view in views]
    if rng.random() < settings.jpeg:
        crf = int(rng.integers(18, 36))
        fakes, reals = apply_video_codec(fakes, crf), apply_video_codec(reals, crf)
    return AugmentedPair(np.stack(fakes), np.stack(reals), np.stack([view.mask for view in views]))


def _draw_window(
    side: int, pixels: int, crop: float, rng: np.random.Generator, *, preserve_pixels: bool
) -> Window:
    share, across, down = rng.random(3)
    size = min(pixels, side) if preserve_pixels else round(side * (1 - crop * share))
    room = side - size
    if preserve_pixels:  # centered, within the share that may be cropped away
        room = min(room, round(side * crop))
    start = (side - size - room) // 2
    return start + round(room * down), start + round(room * across), size


_CODECS = {"mp3": ("libmp3lame", "mp3", 44_100), "aac": ("aac", "adts", 44_100)}


def apply_audio_codec(values: AudioSamples, codec: str, bits_a_second: int) -> AudioSamples:
    """Encode and decode audio with MP3 or AAC in memory; the length is preserved.

    Args:
        values: Mono, (N,), at ``SAMPLE_RATE``.
        codec: ``mp3`` or ``aac``.
        bits_a_second: Bit rate, such as 64000.

    Raises:
        DataError: If this build of PyAV lacks the encoder.
    """
    require_packages("av")
    import av
    from av.audio.stream import AudioStream

    name, container_name, rate = _CODECS[codec]
    out = io.BytesIO()
    try:
        with av.open(out, "w", format=container_name) as container:
            stream = container.add_stream(name, rate=rate)
            if not isinstance(stream, AudioStream):
                raise ValueError(f"{name} is not an audio codec")
            stream.bit_rate, stream.layout = bits_a_second, "mono"
            raised = np.ascontiguousarray(resample(values, SAMPLE_RATE, rate)[None], np.float32)
            frame = av.AudioFrame.from_ndarray(raised, format="fltp", layout="mono")
            frame.sample_rate = rate
            fitter = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate)
            for part in [*fitter.resample(frame), *fitter.resample(None)]:
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        raise DataError(
            f"audio cannot be encoded with {name}: {error}",
            code="forensics.sound-coding",
            expected=f"a build of PyAV with {name}",
            next="pip install --force-reinstall av",
        ) from error
    return _decode(out, len(values))


def match_loudness(forged: ForgedAudio) -> ForgedAudio:
    """Remove the offset of a forgery and its twin, and match their loudness.

    Without it, the loudness or a recorder's offset alone would separate a resynthesis from its
    twin.
    """
    twin = forged.twin - np.float32(forged.twin.mean())
    values = forged.values - np.float32(forged.values.mean())
    loud, quiet = (float(np.sqrt(np.mean(np.square(waveform)))) for waveform in (twin, values))
    if quiet > 0 and loud > 0:
        values = values * np.float32(loud / quiet)
    most = max(float(np.abs(waveform).max(initial=0.0)) for waveform in (twin, values))
    share = np.float32(1 / max(most, 1.0))  # both alike, so that neither is clipped
    return replace(forged, values=values * share, twin=twin * share)


def add_noise(values: AudioSamples, decibels: float, rng: np.random.Generator) -> AudioSamples:
    """Add white noise ``decibels`` dB below the signal."""
    power = float(np.mean(values.astype(np.float64) ** 2)) / 10 ** (decibels / 10)
    noisy = values + rng.normal(0, np.sqrt(power), len(values))
    return np.asarray(np.clip(noisy, -1, 1), dtype=np.float32)


def augment_audio_pair(
    fake: AudioSamples, real: AudioSamples, coded: float, rng: np.random.Generator
) -> tuple[AudioSamples, AudioSamples]:
    """Augment both waveforms alike: gain, noise, and a codec for a share ``coded``."""
    gain = float(10 ** (rng.uniform(-12, 0) / 20))
    decibels, seed = float(rng.uniform(18, 45)), int(rng.integers(2**63))
    is_coded = bool(rng.random() < coded)
    codec = ("mp3", "aac")[int(rng.integers(2))]
    bits = int(rng.choice([32_000, 48_000, 64_000, 96_000]))

    def treat(values: AudioSamples) -> AudioSamples:
        out = add_noise(gain * values, decibels, np.random.default_rng(seed))
        return apply_audio_codec(out, codec, bits) if is_coded else out

    return treat(fake), treat(real)


def _limit_bandwidth(values: AudioSamples) -> AudioSamples:
    return resample(resample(values, SAMPLE_RATE, 8000), 8000, SAMPLE_RATE)[: len(values)]


AUDIO_CONDITIONS: Mapping[str, Callable[[AudioSamples], AudioSamples]] = {
    "clean": lambda values: values,
    "mp3_64": lambda values: apply_audio_codec(values, "mp3", 64_000),
    "aac_64": lambda values: apply_audio_codec(values, "aac", 64_000),
    "noise20": lambda values: add_noise(values, 20.0, np.random.default_rng(len(values))),
    "telephone": _limit_bandwidth,
}


def _decode(data: io.BytesIO, count: int) -> AudioSamples:
    import av
    from av.container import InputContainer

    data.seek(0)
    parts: list[AudioSamples] = []
    with av.open(data, "r") as coded:
        if not isinstance(coded, InputContainer):
            raise TypeError("PyAV did not open the file for reading")
        fitter = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        for frame in coded.decode(audio=0):
            parts += [np.asarray(p.to_ndarray(), np.float32)[0] for p in fitter.resample(frame)]
        parts += [np.asarray(p.to_ndarray(), np.float32)[0] for p in fitter.resample(None)]
    waveform = np.concatenate(parts)[:count]
    return np.asarray(np.pad(waveform, (0, count - len(waveform))), dtype=np.float32)
