"""Invisible image watermark: 48 bits in mid-frequency DCT coefficients.

The luma is resized to 256 x 256 and transformed by a cosine transform; a keyed choice of signs
(chips) over the middle band carries the mark. 48 bits with a 24-bit check go through a
convolutional code, each coded bit over some 26 chips; a fifth of the chips is a pilot, the same in
every image of a key, by which the place of a crop is found. Embedding
is informed: what the image itself already says for or against a bit is counted, and just so much is
added as reaches the same margin for every bit at the asked quality. Before reading, loud edges and
textures are brought to one contrast, since the mark lies evenly and they do not.

**False positives.** Each time that 48 bits are decoded from what is not marked, the 24-bit keyed
check fits by chance with 2**-24: 6e-8 an image that is read as it stands. Where crops are searched,
eight places more are decoded: 5e-7 an image. Who reads many images of one file, as the frames of a
clip, has to add them up: ``ImageWatermarkResult.decodings`` says how many there were.

What it does not withstand is in docs/explanation/forensics.md: rotation, crops above 10 % a side,
strong blur, and anyone who has the key.

Source: Cox et al. 1997, "Secure spread spectrum watermarking for multimedia", IEEE TIP 6(12)
(spread spectrum in a cosine transform); Miller et al. 2004, "Applying informed coding and embedding
to design a robust high-capacity watermark", IEEE TIP 13(6) (informed embedding).
"""

from __future__ import annotations

import hashlib
import hmac
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.forensics.watermark.error_correction import (
    compute_coded_length,
    decode_soft,
    encode_bits,
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
_CHECK_BITS = 24
IMAGE_FALSE_MATCH_RATE = 2.0**-_CHECK_BITS
"""With which what is not marked passes, each time that its bits are decoded."""

_SIDE = 256
_LOW, _HIGH = 16.0, 82.0
_PILOT_SHARE = 0.2
_CODED = compute_coded_length(IMAGE_PAYLOAD_BITS + _CHECK_BITS)
_CLIP = 2.0
_PLACES = 8
_NEAR = 3.0
_FINE = 4.0
_FLOOR = 1.0
_ROUNDS = 3
_ROUNDING = 1 / 12  # what rounding to whole numbers adds to the squared error
_SHARES = tuple(round(1.0 - 0.01 * step, 2) for step in range(11))
_LEAST_SIDE = 96

Floats = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ImageWatermarkResult:
    """What was read: the payload (None: no mark of this key), the pilot's z, where it was found.

    ``kept`` is the share of width and height that a crop left, (1, 1) for the whole image; ``at``
    where in the square of 256 its upper left corner lay, down and right; ``decodings`` how often
    bits were decoded, each of which may fit by ``IMAGE_FALSE_MATCH_RATE``.
    """

    payload: int | None
    z: float
    kept: tuple[float, float] = (1.0, 1.0)
    decodings: int = 1
    at: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class _Plan:
    """A key's chips: places in the band, their signs, which coded bit each carries (-1: pilot)."""

    rows: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]
    signs: Floats
    bit: npt.NDArray[np.intp]
    pilot_spectrum: npt.NDArray[np.complex64]


class ImageWatermark:
    """Writes and reads marks of one key."""

    def __init__(self, key: bytes) -> None:
        """Take the secret key; who has it can read, forge and remove marks."""
        if len(key) < 16:
            raise DataError(
                f"a watermark key of {len(key)} bytes can be guessed",
                code="forensics.key",
                expected="16 bytes or more",
                next="stillroom forensics provenance init-ca makes one",
            )
        self._key = key
        self._plan = _make_plan(key)

    def embed(self, image: Image, payload: int, *, psnr: float = 42.0) -> Image:
        """Return the image with the payload, at the asked quality.

        Args:
            image: RGB, (H, W, 3), 8 bits; at least 96 pixels each way.
            payload: Below 2**48.
            psnr: Peak signal to noise ratio of the result in dB.

        Raises:
            DataError: If the image is too small, or the mark cannot be read back.
        """
        height, width = image.shape[:2]
        if min(height, width) < _LEAST_SIDE:
            raise DataError(
                f"an image of {width}x{height} pixels is too small to carry a mark",
                code="forensics.too-small",
                expected=f"at least {_LEAST_SIDE} pixels each way",
                next="make larger images: size=256",
            )
        target = self._message(payload)
        square = _square(_luma(image))
        residual = self._residual(square, target, psnr)
        full = np.asarray(
            cv2.resize(residual, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32
        )
        full = full * np.float32(_scale_to(full, psnr))
        # One pass that adds, rounds half to even and clips, where numpy takes four.
        planes = [cv2.add(plane, full, dtype=cv2.CV_8U) for plane in cv2.split(image)]
        marked = np.asarray(cv2.merge(planes), dtype=np.uint8)
        if self.read(marked).payload != payload:
            raise DataError(
                "the mark cannot be read back from this image",
                code="forensics.mark-failed",
                expected="an image with some structure or room for it (not all black or white)",
                next="leave the image out, or lower marking.psnr",
            )
        return marked

    def read(self, image: Image, *, search: bool = False) -> ImageWatermarkResult:
        """Read the mark of this key.

        Args:
            image: RGB, (H, W, 3), 8 bits.
            search: Look for the mark in crops up to 10 % a side too; some 0.3 s longer where the
                image has none.
        """
        if min(image.shape[:2]) < _LEAST_SIDE // 4:
            return ImageWatermarkResult(None, 0.0, decodings=0)
        luma = _luma(image)
        found = self._decode(_square(luma))
        if found.payload is not None or not search:
            return found
        return self._search(luma, found)

    def _search(self, luma: Floats, found: ImageWatermarkResult) -> ImageWatermarkResult:
        """Look for the pilot at every shift, for every share that a crop may have left."""
        places = sorted(
            (self._locate(luma, share) for share in product(_SHARES, _SHARES)),
            key=lambda place: -place[0],
        )[:_PLACES]
        for number, (_, share, (down, right)) in enumerate(places, start=2):
            tile = _shrink(luma, share)
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
        return replace(found, decodings=1 + len(places))

    def _locate(
        self, luma: Floats, share: tuple[float, float]
    ) -> tuple[float, tuple[float, float], tuple[int, int]]:
        """Return how far the pilot stands out at its best shift, the share, and that shift."""
        tile = _shrink(luma, share)
        height, width = tile.shape
        canvas = np.zeros((_SIDE, _SIDE), dtype=np.float32)
        canvas[:height, :width] = _flatten(tile)
        spectrum = np.fft.rfft2(canvas)
        size = np.abs(spectrum)
        size[size < 1e-6] = 1e-6
        surface = np.fft.irfft2(np.conj(spectrum / size) * self._plan.pilot_spectrum)
        # A tile of this size can only have come from these places.
        room = surface[: _SIDE - height + 1, : _SIDE - width + 1]
        at = np.unravel_index(int(np.argmax(room)), room.shape)
        spread = float(surface.std()) or 1.0
        return float(room[at]) / spread, share, (int(at[0]), int(at[1]))

    def _decode(self, square: Floats) -> ImageWatermarkResult:
        plan = self._plan
        values = _whiten(square)[plan.rows, plan.columns]
        spoken = values * plan.signs
        pilot = spoken[plan.bit < 0]
        z = float(pilot.sum() / max(math.sqrt(float((pilot**2).sum())), 1e-9))
        data = plan.bit >= 0
        soft = np.bincount(plan.bit[data], weights=spoken[data], minlength=_CODED)
        bits = decode_soft(np.asarray(soft, dtype=np.float64))
        payload = int("".join(map(str, bits[:IMAGE_PAYLOAD_BITS])), 2)
        check = int("".join(map(str, bits[IMAGE_PAYLOAD_BITS:])), 2)
        return ImageWatermarkResult(payload if check == self._check(payload) else None, z)

    def _message(self, payload: int) -> Floats:
        """Return +1 or -1 for each chip's bit."""
        if not 0 <= payload < 2**IMAGE_PAYLOAD_BITS:
            raise DataError(
                f"the payload {payload} does not fit {IMAGE_PAYLOAD_BITS} bits",
                code="forensics.payload",
                expected=f"0 to 2**{IMAGE_PAYLOAD_BITS} - 1",
                next="take the first 48 bits of a digest",
            )
        text = format(payload, f"0{IMAGE_PAYLOAD_BITS}b") + format(
            self._check(payload), f"0{_CHECK_BITS}b"
        )
        coded = encode_bits(np.array([int(bit) for bit in text], dtype=np.uint8))
        return (coded.astype(np.float32) * 2 - 1)[np.maximum(self._plan.bit, 0)] * (
            self._plan.bit >= 0
        ) + (self._plan.bit < 0)

    def _check(self, payload: int) -> int:
        """Return a keyed 24-bit check, so that no other key's mark passes for one of this key."""
        digest = hmac.new(self._key, payload.to_bytes(6, "big"), hashlib.sha256).digest()
        return int.from_bytes(digest[:3], "big")

    def _residual(self, square: Floats, target: Floats, psnr: float) -> Floats:
        """Return what is added to the square luma, so that all bits reach one margin."""
        plan = self._plan
        wanted = plan.signs * target
        group = np.where(plan.bit < 0, _CODED, plan.bit)
        counts = np.bincount(group, minlength=_CODED + 1)
        budget = 255.0**2 / 10 ** (psnr / 10) * _SIDE * _SIDE
        amount = np.full(_CODED + 1, math.sqrt(budget / len(group)))
        added = np.zeros((_SIDE, _SIDE), dtype=np.float32)
        before = np.bincount(group, weights=wanted * _whiten(square)[plan.rows, plan.columns])
        margins = before
        for step in range(_ROUNDS):
            if step:
                gained = max(float(((margins - before) / counts).mean() / amount.mean()), 1e-6)
                short = (margins.mean() / counts.mean()) - margins / counts
                amount = np.maximum(amount + short / gained, 0.0)
                energy = float((amount[group] ** 2).sum())
                amount *= math.sqrt(budget / energy)
            added[plan.rows, plan.columns] = amount[group] * wanted
            residual = np.asarray(cv2.idct(added), dtype=np.float32)
            if step == _ROUNDS - 1:
                break
            heard = _whiten(square + residual)[plan.rows, plan.columns]
            margins = np.bincount(group, weights=wanted * heard)
        return residual


def align_luma(image: Image, reading: ImageWatermarkResult) -> Floats:
    """Return the luma where the mark was found in it, (256, 256); NaN where a crop left nothing.

    Args:
        image: RGB, (H, W, 3), 8 bits.
        reading: What was read of it.
    """
    square = np.full((_SIDE, _SIDE), np.nan, dtype=np.float32)
    tile, (down, right) = _shrink(_luma(image), reading.kept), reading.at
    room = square[down : down + tile.shape[0], right : right + tile.shape[1]]
    room[:] = tile[: room.shape[0], : room.shape[1]]
    return square


def measure_psnr(image: Image, other: Image) -> float:
    """Return the peak signal to noise ratio of two 8-bit images in dB; infinite if equal."""
    error = float(np.mean((image.astype(np.float64) - other.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def _scale_to(residual: Floats, psnr: float) -> float:
    """Return the factor that brings a residual to the asked quality."""
    power = float(cv2.norm(residual, cv2.NORM_L2SQR)) / residual.size
    wanted = max(255.0**2 / 10 ** (psnr / 10) - _ROUNDING, 0.0)
    return math.sqrt(wanted / power) if power > 0 else 0.0


@lru_cache(maxsize=4)
def _make_plan(key: bytes) -> _Plan:
    """Derive a key's chips; only a hash is used, so that every numpy gives the same."""
    v, u = np.mgrid[0:_SIDE, 0:_SIDE]
    radius = np.hypot(u, v)
    rows, columns = np.nonzero((radius >= _LOW) & (radius < _HIGH))
    count = len(rows)
    stream = hashlib.shake_256(b"stillroom watermark 1" + key).digest(count * 9)
    order = np.argsort(np.frombuffer(stream[: count * 8], dtype=">u8"), kind="stable")
    signs = np.where(np.frombuffer(stream[count * 8 :], dtype=np.uint8) & 1, 1.0, -1.0)
    bit = np.empty(count, dtype=np.intp)
    pilots = int(count * _PILOT_SHARE)
    bit[order[:pilots]] = -1
    bit[order[pilots:]] = np.arange(count - pilots) % _CODED
    pattern = np.zeros((_SIDE, _SIDE), dtype=np.float32)
    is_pilot = bit < 0
    pattern[rows[is_pilot], columns[is_pilot]] = signs[is_pilot]
    spectrum = np.fft.rfft2(cv2.idct(pattern)).astype(np.complex64)
    return _Plan(rows, columns, signs.astype(np.float32), bit, spectrum)


def _luma(image: Image) -> Floats:
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"an image of shape {image.shape} has no three colours",
            code="forensics.image",
            expected="RGB, (H, W, 3), 8 bits",
            next="convert it to RGB first",
        )
    return np.asarray(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY))


def _interpolation(shape: tuple[int, ...]) -> int:
    return cv2.INTER_AREA if min(shape[:2]) > _SIDE else cv2.INTER_CUBIC


def _square(luma: Floats) -> Floats:
    size = (_SIDE, _SIDE)
    return np.asarray(
        cv2.resize(luma, size, interpolation=_interpolation(luma.shape)), dtype=np.float32
    )


def _shrink(luma: Floats, share: tuple[float, float]) -> Floats:
    size = round(_SIDE * share[0]), round(_SIDE * share[1])
    return np.asarray(
        cv2.resize(luma, size, interpolation=_interpolation(luma.shape)), dtype=np.float32
    )


def _whiten(square: Floats) -> Floats:
    """Return the cosine transform with what is loud made quiet, in place and in frequency.

    The mark lies evenly over the image, the image's own edges and texture do not: dividing by the
    local contrast, then by the size of the coefficients around, takes most of them away.
    """
    cosines = cv2.dct(_flatten(square))
    size = cv2.GaussianBlur(np.abs(cosines), (0, 0), _NEAR)
    return np.asarray(np.clip(cosines / (size + 1e-6), -_CLIP, _CLIP), dtype=np.float32)


def _flatten(luma: Floats) -> Floats:
    """Return the fine structure at one contrast everywhere."""
    fine = luma - cv2.GaussianBlur(luma, (0, 0), _FINE)
    contrast = np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), _NEAR))
    return np.asarray(fine / (contrast + _FLOOR), dtype=np.float32)
