"""What is done to pixels by several forgeries and edits: colour, detail, JPEG, geometry.

Everything takes and gives RGB in 8 bits unless it says otherwise; all chance comes from the
generator that is handed in.
"""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.forensics.face import Image, Mask, Points

__all__ = [
    "align_points",
    "blend",
    "compress",
    "fit_size",
    "from_float",
    "jitter_colour",
    "jitter_detail",
    "mask_box",
    "rescale",
    "warp_affine",
]

Matrix = npt.NDArray[np.float64]
Pixels = TypeVar("Pixels", Image, Mask)


def from_float(image: npt.NDArray[np.floating]) -> Image:
    """Round to 8 bits; values out of range are clipped, never wrapped."""
    whole = np.rint(image)
    np.minimum(np.maximum(whole, 0, out=whole), 255, out=whole)
    return np.asarray(whole, dtype=np.uint8)


def blend(source: Image, target: Image, mask: Mask) -> Image:
    """Return source where the mask is 1, target where it is 0, a mixture between; (H, W, 3)."""
    weight = np.asarray(cv2.merge([mask, mask, mask]))  # one loop over all, not one a pixel
    mixed = source.astype(np.float32)
    mixed *= weight
    mixed += (1 - weight) * target.astype(np.float32)
    return from_float(mixed)


def fit_size(image: Image, shape: tuple[int, int]) -> Image:
    """Return the image at a height and width, resized where it has another."""
    if image.shape[:2] == shape:
        return image
    resized = cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, dtype=np.uint8)


def compress(image: Image, quality: int) -> Image:
    """Return what JPEG leaves of an image at a quality of 1 to 100."""
    wrote, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not wrote:
        raise ValueError("OpenCV did not encode the image")
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])


def rescale(image: Image, share: float, *, down: int = cv2.INTER_AREA) -> Image:
    """Return the image after reducing it to a share of its size and enlarging it again."""
    height, width = image.shape[:2]
    small = cv2.resize(
        image, (max(round(width * share), 2), max(round(height * share), 2)), interpolation=down
    )
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))


def jitter_colour(image: Image, rng: np.random.Generator, *, strength: float = 1.0) -> Image:
    """Shift channels, hue, saturation, brightness and contrast a little.

    At strength 1: each channel by up to 20 with probability 0.3, hue by up to 5 degrees,
    saturation and value by up to 15 %, brightness and contrast by up to 10 %.
    """
    out: npt.NDArray[np.float32] = image.astype(np.float32)
    if rng.random() < 0.3:
        out += rng.uniform(-20, 20, 3).astype(np.float32) * strength
    light = np.minimum(np.maximum(out, 0, out=out), 255, out=out)
    light /= 255.0
    # Planes one by one: numpy's loops over the last axis of an image are ten times slower.
    hue, *rest = (
        np.asarray(p, np.float32) for p in cv2.split(cv2.cvtColor(light, cv2.COLOR_RGB2HSV))
    )
    hue += rng.uniform(-5, 5) * strength
    np.add(hue, 360, out=hue, where=hue < 0)
    np.subtract(hue, 360, out=hue, where=hue >= 360)
    factors = 1 + rng.uniform(-0.15, 0.15, 2).astype(np.float32) * strength
    for plane, factor in zip(rest, factors, strict=True):
        plane *= factor
        np.minimum(np.maximum(plane, 0, out=plane), 1, out=plane)
    out = np.asarray(cv2.cvtColor(cv2.merge([hue, *rest]), cv2.COLOR_HSV2RGB), np.float32)
    out *= 255.0
    gain, shift = 1 + rng.uniform(-0.1, 0.1) * strength, rng.uniform(-0.1, 0.1) * strength * 128
    middle = float(out.mean())
    out -= middle
    out *= gain
    out += middle
    out += shift
    return from_float(out)


def jitter_detail(image: Image, rng: np.random.Generator) -> Image:
    """Either lose detail by a factor of 2 or 4, or sharpen."""
    if rng.random() < 0.5:
        return rescale(image, 1 / float(rng.choice([2, 4])), down=cv2.INTER_NEAREST)
    amount = float(rng.uniform(0.2, 0.5))
    plain = image.astype(np.float32)
    return from_float(plain + amount * 2 * (plain - cv2.GaussianBlur(plain, (0, 0), 1.0)))


def warp_affine(image: Pixels, matrix: Matrix) -> Pixels:
    """Return an image or mask under a 2 x 3 matrix; what comes from outside repeats the rim."""
    height, width = image.shape[:2]
    is_mask = image.ndim == 2
    return np.asarray(
        cv2.warpAffine(
            image,
            matrix,
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT if is_mask else cv2.BORDER_REFLECT_101,
        ),
        dtype=image.dtype,
    )


def align_points(source: Points, target: Points) -> Matrix:
    """Return the similarity that takes source nearest to target, 2 x 3, by least squares.

    Source: Umeyama 1991, "Least-squares estimation of transformation parameters between two point
    patterns", IEEE TPAMI 13(4).
    """
    a, b = source.astype(np.float64), target.astype(np.float64)
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    left, sizes, right = np.linalg.svd((b - mean_b).T @ (a - mean_a) / len(a))
    sign = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right)) or 1.0])
    turn = left @ np.diag(sign) @ right
    spread = float(((a - mean_a) ** 2).sum()) / len(a)
    scale = float((sizes * sign).sum()) / max(spread, 1e-12)
    return np.asarray(np.column_stack([scale * turn, mean_b - scale * turn @ mean_a]))


def mask_box(mask: Mask) -> tuple[int, int, int, int]:
    """Return x, y, width and height of what a mask covers at 0.5 of its maximum; zeros if none."""
    covered = mask > 0.5 * max(float(mask.max()), 1e-6)
    if not covered.any():
        return 0, 0, 0, 0
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
