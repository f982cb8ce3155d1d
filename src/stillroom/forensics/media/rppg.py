"""Remote photoplethysmography: heart-rate estimates from facial skin color.

Blood changes the color of skin with every beat, far below what eyes can see. Two published
combinations of the mean red, green and blue of skin turn this into a signal. Its strength within
the pulse band is compared with the same measure of the background. Forgeries may carry the pulse of
the driving actor, and compression may remove any pulse: neither presence nor absence shows that a
face is real or forged.

Source: de Haan and Jeanne 2013, "Robust pulse rate from chrominance-based rPPG", IEEE TBME 60(10),
equations 9 to 16 (CHROM), and its signal to noise ratio; Wang et al. 2017, "Algorithmic principles
of remote PPG", IEEE TBME 64(7), algorithm 1 (POS). That forgeries can carry a pulse: Seibold et
al. 2025, "High-quality deepfakes have a heart!", Frontiers in Imaging.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.forensics.media.face import Image
from stillroom.forensics.media.face_detection import FaceFinder
from stillroom.forensics.media.video import Clip, sample_frames

__all__ = ["RppgEstimate", "chrom", "estimate_rppg", "measure_pulse_strength", "pos"]

_BAND = (0.7, 4.0)  # Hz: 42 to 240 beats a minute
_WINDOW_S = 1.6
_NEAR = 0.1  # Hz around the peak and its double that count as the pulse
_MAX_SECONDS = 20.0
_MIN_SECONDS = 8.0
_MIN_FPS = 20.0
_MIN_FACE_WIDTH = 64.0
_MIN_BITS_PER_PIXEL = 0.1
_MIN_STRENGTH, _MIN_ADVANTAGE = (
    0.0,
    3.0,
)  # minimum strength in decibels, and margin above the background
_FIND_EVERY = 5
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RppgEstimate:
    """Pulse estimate of one face: beats per minute, strength of face and background in decibels.

    ``strength`` is None without an estimate, for ``reasons``. The weaker of POS and CHROM counts.
    """

    face: int
    seconds: float
    rate: float = 0.0
    strength: float | None = None
    background: float = 0.0
    reasons: tuple[str, ...] = ()

    @property
    def is_found(self) -> bool:
        """Whether the face, and not the background, shows a pulse."""
        return (
            self.strength is not None
            and self.strength >= _MIN_STRENGTH
            and self.strength >= self.background + _MIN_ADVANTAGE
        )

    def line(self) -> str:
        """Format as one line."""
        if self.strength is None:
            return f"face {self.face}: no estimate: {'; '.join(self.reasons)}"
        measures = (
            f"{self.strength:.1f} dB, background {self.background:.1f} dB, {self.seconds:.0f} s"
        )
        if self.is_found:
            text = f"{self.rate:.0f} beats a minute ({measures}); forgeries can carry one too"
            return f"face {self.face}: {text}"
        return f"face {self.face}: none found ({measures}); compression alone can take it away"

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "face": self.face,
            "seconds": round(self.seconds, 2),
            "found": self.is_found if self.strength is not None else None,
            "beats_a_minute": round(self.rate, 1) if self.is_found else None,
            "strength_db": None if self.strength is None else round(self.strength, 2),
            "background_db": round(self.background, 2),
            "reasons": list(self.reasons),
        }


def estimate_rppg(
    clip: Clip, *, bits_per_pixel: float = 0.0, finder: FaceFinder | None = None
) -> tuple[RppgEstimate, ...]:
    """Estimate the pulse of the largest face of a clip, or list the reasons for no estimate.

    Decodes up to 20 seconds from the middle of the clip, one frame in memory at a time.

    Args:
        clip: As returned by ``open_clip``.
        bits_per_pixel: Of its video; 0 if unknown.
        finder: Face detector; default: a new one.

    Raises:
        DataError: If no frame can be decoded.
        MissingExtraError: If no face detector is installed.
    """
    seconds = min(clip.duration, _MAX_SECONDS)
    reasons = _list_doubts(clip, bits_per_pixel)
    if reasons:
        return (RppgEstimate(1, seconds, reasons=tuple(reasons)),)
    traces = _read_traces(clip, finder or FaceFinder())
    if traces.lost > 0.1 * max(len(traces.times), 1) or len(traces.times) < _MIN_SECONDS * 10:
        return (RppgEstimate(1, seconds, reasons=("no face was seen without a break",)),)
    if float(np.median(traces.widths)) < _MIN_FACE_WIDTH:
        width = f"face of {np.median(traces.widths):.0f} px, below {_MIN_FACE_WIDTH:.0f} px"
        return (RppgEstimate(1, seconds, reasons=(width,)),)
    skin, fps = _resample_evenly(traces.times, traces.skin)
    around, _ = _resample_evenly(traces.times, traces.around)
    length = len(skin) / fps
    if length < _MIN_SECONDS:
        return (RppgEstimate(1, length, reasons=(f"only {length:.1f} s of one face",)),)
    face_strengths = [measure_pulse_strength(method(skin, fps), fps) for method in (pos, chrom)]
    background_strengths = [
        measure_pulse_strength(method(around, fps), fps) for method in (pos, chrom)
    ]
    strength, rate = min(face_strengths)
    return (
        RppgEstimate(1, length, rate, strength, max(value for value, _ in background_strengths)),
    )


def pos(colors: Floats, fps: float) -> Floats:
    """Return the POS pulse signal: mean colors projected to the plane orthogonal to skin, (N,).

    Args:
        colors: Mean red, green and blue of skin in each frame, (N, 3), above 0.
        fps: Frames per second.
    """
    return _overlap_add(colors, fps, _project_pos)


def chrom(colors: Floats, fps: float) -> Floats:
    """Return the CHROM pulse signal by chrominance, (N,); arguments as for ``pos``."""
    return _overlap_add(colors, fps, _project_chrom)


def measure_pulse_strength(signal: Floats, fps: float) -> tuple[float, float]:
    """Return decibels of the peak and its double over the rest of the band, and beats per min."""
    count = len(signal)
    padded = max(4096, count)
    power = np.abs(np.fft.rfft(signal * np.hanning(count), padded)) ** 2
    frequency = np.fft.rfftfreq(padded, 1 / fps)
    inside = (frequency >= _BAND[0]) & (frequency <= _BAND[1])
    if not inside.any() or power[inside].sum() <= 0:
        return -99.0, 0.0
    peak = float(frequency[inside][np.argmax(power[inside])])
    spread = max(_NEAR, 1.5 * fps / count)  # not finer than the resolution of the window
    beats = (np.abs(frequency - peak) <= spread) | (np.abs(frequency - 2 * peak) <= spread)
    pulse_power, other_power = power[inside & beats].sum(), power[inside & ~beats].sum()
    return float(10 * np.log10(max(pulse_power, 1e-12) / max(other_power, 1e-12))), 60 * peak


@dataclass
class _Traces:
    times: list[float] = field(default_factory=list)
    skin: list[Floats] = field(default_factory=list)
    around: list[Floats] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    lost: int = 0


def _list_doubts(clip: Clip, bits_per_pixel: float) -> list[str]:
    doubts = []
    if clip.duration < _MIN_SECONDS:
        doubts.append(f"{clip.duration:.1f} s of video, below {_MIN_SECONDS:.0f} s")
    if clip.rate < _MIN_FPS:
        doubts.append(f"{clip.rate:.3g} frames a second, below {_MIN_FPS:.0f}")
    if 0 < bits_per_pixel < _MIN_BITS_PER_PIXEL:
        doubts.append(f"strongly compressed video ({bits_per_pixel:.3f} bits a pixel)")
    return doubts


def _read_traces(clip: Clip, finder: FaceFinder) -> _Traces:
    """Return mean colors of cheeks and forehead, and of the background, per frame."""
    traces = _Traces()
    begin = max(clip.duration - _MAX_SECONDS, 0.0) / 2
    end = min(begin + _MAX_SECONDS, clip.duration)
    count = round(clip.rate * (end - begin))
    box: tuple[float, float, float, float] | None = None
    for number, frame in enumerate(sample_frames(clip, count, exact=True, within=(begin, end))):
        if number % _FIND_EVERY == 0 or box is None:
            faces = finder.find(frame.image)
            near = [face.box for face in faces if box is None or _is_near(face.box, box)]
            box = _smooth(box, near[0]) if near else None
        if box is None:
            traces.lost += 1
            continue
        traces.times.append(frame.time)
        traces.skin.append(_skin(frame.image, box))
        traces.around.append(_around(frame.image, box))
        traces.widths.append(box[2])
    return traces


def _is_near(box: tuple[float, ...], reference: tuple[float, ...]) -> bool:
    gap = np.hypot(box[0] - reference[0], box[1] - reference[1])
    return bool(gap < 0.5 * reference[2] and 0.6 < box[2] / reference[2] < 1.7)


def _smooth(
    previous: tuple[float, float, float, float] | None, current: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """Smooth a box over time: a jumping box would write its own rhythm into the colors."""
    if previous is None:
        return current
    x, y, width, height = (
        0.7 * old + 0.3 * new for old, new in zip(previous, current, strict=True)
    )
    return x, y, width, height


def _skin(image: Image, box: tuple[float, float, float, float]) -> Floats:
    """Return the mean color of forehead and cheeks."""
    x, y, width, height = box
    parts = [(0.3, 0.08, 0.4, 0.16), (0.12, 0.5, 0.22, 0.2), (0.66, 0.5, 0.22, 0.2)]
    cuts = [
        image[
            max(int(y + down * height), 0) : int(y + (down + tall) * height) + 1,
            max(int(x + along * width), 0) : int(x + (along + wide) * width) + 1,
        ]
        for along, down, wide, tall in parts
    ]
    means = [cv2.mean(np.ascontiguousarray(cut))[:3] for cut in cuts if cut.size]
    return np.asarray(np.array(means or [(1.0, 1.0, 1.0)]).mean(axis=0) + 1e-3, np.float64)


def _around(image: Image, box: tuple[float, float, float, float]) -> Floats:
    """Return the mean color of the background beside and above the head."""
    x, y, width, height = box
    mask = np.full(image.shape[:2], 255, dtype=np.uint8)
    left, right = max(int(x - 0.4 * width), 0), int(x + 1.4 * width)
    mask[max(int(y - 0.5 * height), 0) :, left:right] = 0
    if not mask.any():
        mask[:] = 255
    return np.array(cv2.mean(image, mask)[:3]) + 1e-3


def _resample_evenly(times: list[float], values: list[Floats]) -> tuple[Floats, float]:
    """Resample colors to even times, (N, 3), and return the frames per second."""
    time, table = np.array(times), np.array(values)
    fps = (len(time) - 1) / max(time[-1] - time[0], 1e-9)
    even = time[0] + np.arange(len(time)) / fps
    columns = [np.interp(even, time, table[:, channel]) for channel in range(3)]
    return np.stack(columns, axis=1), float(fps)


def _overlap_add(colors: Floats, fps: float, project: Callable[[Floats], Floats]) -> Floats:
    """Overlap-add windows of 1.6 seconds, each divided by its mean color, half overlapping."""
    count = len(colors)
    length = min(max(round(_WINDOW_S * fps), 4), count)
    step = max(length // 2, 1)
    out, taper = np.zeros(count), np.hanning(length + 2)[1:-1]
    for begin in range(0, count - length + 1, step):
        part = colors[begin : begin + length]
        signal = project(part / part.mean(axis=0))
        out[begin : begin + length] += taper * (signal - signal.mean())
    return out


def _project_pos(part: Floats) -> Floats:
    difference, luma_contrast = part[:, 1] - part[:, 2], part[:, 1] + part[:, 2] - 2 * part[:, 0]
    return np.asarray(
        difference + luma_contrast * (difference.std() / max(luma_contrast.std(), 1e-12))
    )


def _project_chrom(part: Floats) -> Floats:
    red, green, blue = part.T
    x_chrominance, y_chrominance = 3 * red - 2 * green, 1.5 * red + green - 1.5 * blue
    return np.asarray(
        x_chrominance - y_chrominance * (x_chrominance.std() / max(y_chrominance.std(), 1e-12))
    )
