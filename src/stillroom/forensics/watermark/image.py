"""Invisible image watermark: 48 bits in mid-frequency DCT coefficients.

The luma is resized to 256 x 256 and transformed by a DCT; a keyed sign pattern (chips) over the
middle band carries the watermark. 48 bits with a 24-bit check go through a convolutional code, each
coded bit over some 26 chips; a fifth of the chips is a pilot, equal in every image of a key, which
locates crops. Embedding is informed: the image's own contribution to each bit is measured, and just
enough is added to reach the same margin for every bit at the requested quality. Before reading,
edges and textures are normalized in contrast, since the watermark is spread evenly and they are
not.

**False positives.** The 24-bit keyed check of an unmarked image matches by chance with probability
2**-24 per decoding: 6e-8 for an uncropped reading. A crop search decodes eight candidates more:
5e-7 per image. Readings of many images of one file, such as the frames of a clip, add up:
``ImageWatermarkResult.decodings`` is the number of decodings.

Not robust against rotation, crops above 10 % per side, strong blur, or anyone who has the key; see
docs/explanation/forensics.md.

Source: Cox et al. 1997, "Secure spread spectrum watermarking for multimedia", IEEE TIP 6(12)
(spread spectrum in a cosine transform); Miller et al. 2004, "Applying informed coding and embedding
to design a robust high-capacity watermark", IEEE TIP 13(6) (informed embedding).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.forensics.watermark.error_correction import (
    CHECK_BITS,
    PayloadCode,
    assign_chips,
    compute_coded_length,
)

__all__ = [
    "IMAGE_FALSE_MATCH_RATE",
    "IMAGE_PAYLOAD_BITS",
    "ImageWatermark",
    "ImageWatermarkResult",
    "align_luma",
    "measure_psnr",
]

IMAGE_PAYLOAD_BITS = 48
IMAGE_FALSE_MATCH_RATE = 2.0**-CHECK_BITS
"""Probability per decoding that an unmarked image passes the check."""

_SIDE = 256
_LOW, _HIGH = 16.0, 82.0
_PILOT_SHARE = 0.2
_CODED = compute_coded_length(IMAGE_PAYLOAD_BITS + CHECK_BITS)
_CLIP = 2.0
_PLACES = 8
_NEAR = 3.0
_FINE = 4.0
_FLOOR = 1.0
_ROUNDS = 3
_ROUNDING = 1 / 12  # squared error added by rounding to integers
_SHARES = tuple(round(1.0 - 0.01 * step, 2) for step in range(11))
_MIN_SIDE = 96
Floats = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ImageWatermarkResult:
    """Result of a reading: payload (None without a mark of this key), pilot z-score, crop.

    ``kept`` is the share of height and width that a crop left, (1, 1) for the whole image; ``at``
    the position of its upper left corner in the 256 x 256 square, down and right; ``decodings`` the
    number of decodings, each with ``IMAGE_FALSE_MATCH_RATE``.
    """

    payload: int | None
    z: float
    kept: tuple[float, float] = (1.0, 1.0)
    decodings: int = 1
    at: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class _Plan:
    """Keyed chips: positions in the band, signs, and the coded bit of each (-1: pilot)."""

    rows: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]
    signs: Floats
    bit: npt.NDArray[np.intp]
    pilot_spectrum: npt.NDArray[np.complex64]


class ImageWatermark:
    """Embed and read the watermark of one key in images."""

    def __init__(self, key: bytes) -> None:
        """Use a secret key; anyone who has it can read, forge and remove watermarks."""
        if len(key) < 16:
            raise DataError(
                f"a watermark key of {len(key)} bytes can be guessed",
                code="forensics.key",
                expected="16 bytes or more",
                next="stillroom forensics provenance init-ca creates one",
            )
        self._code = PayloadCode(key, IMAGE_PAYLOAD_BITS)
        self._plan = _make_plan(key)

    def embed(self, image: Image, payload: int, *, psnr: float = 42.0) -> Image:
        """Embed a payload and return the watermarked image.

        Args:
            image: RGB, (H, W, 3), 8 bits; at least 96 pixels per side.
            payload: Below 2**48.
            psnr: Peak signal-to-noise ratio of the result in dB.

        Raises:
            DataError: If the image is too small, or the watermark cannot be read back.
        """
        height, width = image.shape[:2]
        if min(height, width) < _MIN_SIDE:
            raise DataError(
                f"an image of {width}x{height} pixels is too small to carry a watermark",
                code="forensics.too-small",
                expected=f"at least {_MIN_SIDE} pixels per side",
                next="make larger images: size=256",
            )
        target = self._message(payload)
        square = _resize(_luma(image))
        residual = self._residual(square, target, psnr)
        full = np.asarray(
            cv2.resize(residual, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32
        )
        # The factor that scales a residual to the requested quality.
        power = float(cv2.norm(full, cv2.NORM_L2SQR)) / full.size
        target_power = max(255.0**2 / 10 ** (psnr / 10) - _ROUNDING, 0.0)
        full = full * np.float32(math.sqrt(target_power / power) if power > 0 else 0.0)
        # cv2.add adds, rounds half to even and clips in one pass, where numpy takes four.
        planes = [cv2.add(plane, full, dtype=cv2.CV_8U) for plane in cv2.split(image)]
        marked = np.asarray(cv2.merge(planes), dtype=np.uint8)
        if self.read(marked).payload != payload:
            raise DataError(
                "the watermark cannot be read back from this image",
                code="forensics.mark-failed",
                expected="an image with structure or headroom (not all black or white)",
                next="remove the image, or lower watermark.psnr",
            )
        return marked

    def read(self, image: Image, *, search: bool = False) -> ImageWatermarkResult:
        """Read the watermark of this key.

        Args:
            image: RGB, (H, W, 3), 8 bits.
            search: Also search crops up to 10 % per side; takes some 0.3 s longer where the image
                has no watermark.
        """
        if min(image.shape[:2]) < _MIN_SIDE // 4:
            return ImageWatermarkResult(None, 0.0, decodings=0)
        luma = _luma(image)
        result = self._decode(_resize(luma))
        if result.payload is not None or not search:
            return result
        return self._search(luma, result)

    def _search(self, luma: Floats, uncropped: ImageWatermarkResult) -> ImageWatermarkResult:
        """Search the pilot at every shift, for every share that a crop may have left."""
        candidates = sorted(
            (self._locate(luma, share) for share in product(_SHARES, _SHARES)),
            key=lambda candidate: -candidate[0],
        )[:_PLACES]
        for number, (_, share, (down, right)) in enumerate(candidates, start=2):
            tile = _resize(luma, share)
            height, width = tile.shape
            square = cv2.copyMakeBorder(
                tile,
                down,
                max(_SIDE - height - down, 0),
                right,
                max(_SIDE - width - right, 0),
                cv2.BORDER_REFLECT_101,
            )[:_SIDE, :_SIDE]
            reading = self._decode(np.asarray(square, dtype=np.float32))
            if reading.payload is not None:
                return ImageWatermarkResult(
                    reading.payload, reading.z, share, number, (down, right)
                )
        return replace(uncropped, decodings=1 + len(candidates))

    def _locate(
        self, luma: Floats, share: tuple[float, float]
    ) -> tuple[float, tuple[float, float], tuple[int, int]]:
        """Return the pilot correlation at the best shift, the share, and that shift."""
        tile = _resize(luma, share)
        height, width = tile.shape
        canvas = np.zeros((_SIDE, _SIDE), dtype=np.float32)
        canvas[:height, :width] = _flatten(tile)
        spectrum = np.fft.rfft2(canvas)
        size = np.abs(spectrum)
        size[size < 1e-6] = 1e-6
        surface = np.fft.irfft2(np.conj(spectrum / size) * self._plan.pilot_spectrum)
        # A tile of this size fits only at these positions.
        room = surface[: _SIDE - height + 1, : _SIDE - width + 1]
        peak = np.unravel_index(int(np.argmax(room)), room.shape)
        spread = float(surface.std()) or 1.0
        return float(room[peak]) / spread, share, (int(peak[0]), int(peak[1]))

    def _decode(self, square: Floats) -> ImageWatermarkResult:
        plan = self._plan
        values = _whiten(square)[plan.rows, plan.columns]
        spoken = values * plan.signs
        pilot = spoken[plan.bit < 0]
        z = float(pilot.sum() / max(math.sqrt(float((pilot**2).sum())), 1e-9))
        return ImageWatermarkResult(self._code.decode(spoken, plan.bit), z)

    def _message(self, payload: int) -> npt.NDArray[np.float64]:
        """Return the signs of all chips for a payload, +1 or -1."""
        if not 0 <= payload < 2**IMAGE_PAYLOAD_BITS:
            raise DataError(
                f"the payload {payload} does not fit {IMAGE_PAYLOAD_BITS} bits",
                code="forensics.payload",
                expected=f"0 to 2**{IMAGE_PAYLOAD_BITS} - 1",
                next="take the first 48 bits of a digest",
            )
        return self._code.spread(payload, self._plan.bit)

    def _residual(self, square: Floats, target: npt.NDArray[np.float64], psnr: float) -> Floats:
        """Return the residual of the square luma that brings all bits to one margin."""
        plan = self._plan
        directions = plan.signs * target
        group = np.where(plan.bit < 0, _CODED, plan.bit)
        counts = np.bincount(group, minlength=_CODED + 1)
        budget = 255.0**2 / 10 ** (psnr / 10) * _SIDE * _SIDE
        amount = np.full(_CODED + 1, math.sqrt(budget / len(group)))
        added = np.zeros((_SIDE, _SIDE), dtype=np.float32)
        initial = np.bincount(group, weights=directions * _whiten(square)[plan.rows, plan.columns])
        margins = initial
        for step in range(_ROUNDS):
            if step:
                gained = max(float(((margins - initial) / counts).mean() / amount.mean()), 1e-6)
                short = (margins.mean() / counts.mean()) - margins / counts
                amount = np.maximum(amount + short / gained, 0.0)
                energy = float((amount[group] ** 2).sum())
                amount *= math.sqrt(budget / energy)
            added[plan.rows, plan.columns] = amount[group] * directions
            residual = np.asarray(cv2.idct(added), dtype=np.float32)
            if step == _ROUNDS - 1:
                break
            coefficients = _whiten(square + residual)[plan.rows, plan.columns]
            margins = np.bincount(group, weights=directions * coefficients)
        return residual


def align_luma(image: Image, reading: ImageWatermarkResult) -> Floats:
    """Return the luma at the position of the watermark, (256, 256); NaN outside of a crop.

    Args:
        image: RGB, (H, W, 3), 8 bits.
        reading: Result of reading it.
    """
    square = np.full((_SIDE, _SIDE), np.nan, dtype=np.float32)
    tile, (down, right) = _resize(_luma(image), reading.kept), reading.at
    room = square[down : down + tile.shape[0], right : right + tile.shape[1]]
    room[:] = tile[: room.shape[0], : room.shape[1]]
    return square


def measure_psnr(image: Image, reference: Image) -> float:
    """Return the peak signal-to-noise ratio of two 8-bit images in dB; infinite if equal."""
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


@lru_cache(maxsize=4)
def _make_plan(key: bytes) -> _Plan:
    v, u = np.mgrid[0:_SIDE, 0:_SIDE]
    radius = np.hypot(u, v)
    rows, columns = np.nonzero((radius >= _LOW) & (radius < _HIGH))
    signs, bit = assign_chips(b"stillroom watermark 1" + key, len(rows), _PILOT_SHARE, _CODED)
    pattern = np.zeros((_SIDE, _SIDE), dtype=np.float32)
    is_pilot = bit < 0
    pattern[rows[is_pilot], columns[is_pilot]] = signs[is_pilot]
    spectrum = np.fft.rfft2(cv2.idct(pattern)).astype(np.complex64)
    return _Plan(rows, columns, signs.astype(np.float32), bit, spectrum)


def _luma(image: Image) -> Floats:
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"an image of shape {image.shape} is not RGB",
            code="forensics.image",
            expected="RGB, (H, W, 3), 8 bits",
            next="convert it to RGB first",
        )
    return np.asarray(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY))


def _resize(luma: Floats, share: tuple[float, float] = (1.0, 1.0)) -> Floats:
    """Resize to the square, or to a share of its height and width."""
    size = round(_SIDE * share[0]), round(_SIDE * share[1])
    kind = cv2.INTER_AREA if min(luma.shape) > _SIDE else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(luma, size, interpolation=kind), dtype=np.float32)


def _whiten(square: Floats) -> Floats:
    """Return the DCT, normalized by local contrast in space and by magnitude in frequency.

    The watermark is spread evenly, edges and texture are not: dividing by the local contrast, then
    by the magnitude of neighboring coefficients, removes most of them.
    """
    cosines = cv2.dct(_flatten(square))
    size = cv2.GaussianBlur(np.abs(cosines), (0, 0), _NEAR)
    return np.asarray(np.clip(cosines / (size + 1e-6), -_CLIP, _CLIP), dtype=np.float32)


def _flatten(luma: Floats) -> Floats:
    """Normalize the fine structure to one contrast."""
    fine = luma - cv2.GaussianBlur(luma, (0, 0), _FINE)
    contrast = np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), _NEAR))
    return np.asarray(fine / (contrast + _FLOOR), dtype=np.float32)
