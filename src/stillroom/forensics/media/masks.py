"""Face hull masks from landmarks, mask softening, and random patch masks.

Source: Li et al. 2020, "Face X-ray", arXiv:1912.13458, section 3.1; Shiohara and Yamasaki 2022,
"Self-Blended Images", arXiv:2204.08376, section 3.2 and its supplement (soft masks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.forensics.media.face_types import PARTS, Mask, Points

__all__ = ["HULL_KINDS", "HullKind", "draw_hull", "draw_patch", "feather", "soften", "warp_mask"]

HullKind = Literal["whole", "features", "components", "inner"]
HULL_KINDS: tuple[HullKind, ...] = get_args(HullKind)
_FULL = 1.0 - 1e-3


def draw_hull(points: Points, shape: tuple[int, int], kind: HullKind) -> Mask:
    """Draw a hard face mask from landmarks, (H, W), 1 inside.

    Args:
        points: 68 landmarks.
        shape: Height and width.
        kind: ``whole``, the convex hull with the brows raised to the forehead; ``inner``, the
            convex hull of the landmarks; ``features``, the union of polygons of jaw, nose and eyes;
            ``components``, a union of brows, eyes, nose, mouth and cheeks.
    """
    if kind == "whole":
        raised = points.copy()
        up = points[27] - points[8]
        raised[17:27] += 0.28 * up
        return _fill([cv2.convexHull(np.concatenate([points, raised[17:27]]))], shape)
    if kind == "inner":
        return _fill([cv2.convexHull(points)], shape)
    if kind == "features":
        lower = np.concatenate([points[PARTS["jaw"]], points[[31, 35]]])
        nose = points[[27, 28, 29, 30, 31, 32, 33, 34, 35]]
        eyes = np.concatenate([points[17:27], points[36:48]])
        return _fill([cv2.convexHull(part) for part in (lower, nose, eyes)], shape)
    left_cheek = points[[2, 3, 4, 48, 31, 41, 36]]
    right_cheek = points[[14, 13, 12, 54, 35, 46, 45]]
    parts = [
        np.concatenate([points[17:22], points[36:42]]),
        np.concatenate([points[22:27], points[42:48]]),
        points[PARTS["nose"]],
        points[PARTS["mouth"]],
        left_cheek,
        right_cheek,
        np.concatenate([points[5:12], points[48:60]]),
        np.concatenate([points[27:31], points[[39, 42]]]),
    ]
    return _fill([cv2.convexHull(part.astype(np.float32)) for part in parts], shape)


def soften(mask: Mask, rng: np.random.Generator) -> Mask:
    """Soften a mask as in SBI: blur, erode by keeping only the full part, blur again.

    A nonempty mask stays nonempty: where the first blur leaves nothing full, it is not eroded. The
    maximum is 1.
    """
    height, width = mask.shape
    side = int(rng.integers(192, 257))
    small = cv2.resize(mask, (side, side), interpolation=cv2.INTER_LINEAR)
    first, second = (int(2 * rng.integers(2, 13) + 1) for _ in range(2))
    blurred = cv2.GaussianBlur(small, (first, first), 0)
    highest = float(blurred.max())
    if highest <= 0:
        return np.zeros_like(mask)
    eroded = np.where(blurred >= highest * _FULL, blurred, 0.0).astype(np.float32)
    soft = cv2.GaussianBlur(eroded, (second, second), float(rng.uniform(5, 45)))
    back = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.clip(back / max(float(back.max()), 1e-6), 0, 1), dtype=np.float32)


def feather(mask: Mask, share: float) -> Mask:
    """Return a mask that rises from 0 at its rim to 1 over ``share`` of its width."""
    hard = (mask > 0.5).astype(np.uint8)
    hard[[0, -1]] = 0
    hard[:, [0, -1]] = 0
    columns = np.flatnonzero(hard.any(axis=0))
    if not len(columns):
        return np.zeros_like(mask)
    depth = cv2.distanceTransform(hard, cv2.DIST_L2, 5)
    reach = max(share * float(columns[-1] - columns[0] + 1), 1.0)
    return np.asarray(np.clip(depth / reach, 0, 1), dtype=np.float32)


def warp_mask(mask: Mask, rng: np.random.Generator, *, alpha: float, sigma: float) -> Mask:
    """Apply an elastic deformation to a mask.

    Source: Simard et al. 2003, "Best practices for convolutional neural networks".

    Args:
        mask: (H, W).
        rng: Source of the displacements.
        alpha: Maximum displacement in pixels before smoothing.
        sigma: Smoothing of the displacements in pixels.
    """
    height, width = mask.shape
    moves = rng.uniform(-1, 1, (height, width, 2)).astype(np.float32)
    moves = cv2.GaussianBlur(moves, (0, 0), sigma) * alpha
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.asarray(
        cv2.remap(mask, x + moves[..., 0], y + moves[..., 1], cv2.INTER_LINEAR), dtype=np.float32
    )


def _fill(polygons: Sequence[npt.NDArray[Any]], shape: tuple[int, int]) -> Mask:
    mask = np.zeros(shape, dtype=np.float32)
    for polygon in polygons:
        cv2.fillConvexPoly(mask, np.rint(polygon).astype(np.int32), 1.0)
    return mask


_CORNERS = 10


def draw_patch(shape: tuple[int, int], rng: np.random.Generator, least: float, most: float) -> Mask:
    """Draw the soft mask of an irregular patch inside the image, (H, W).

    Args:
        shape: Height and width of the image.
        rng: Source of shape and position.
        least: Minimum width and height, as a share of the image's.
        most: Maximum width and height.
    """
    height, width = shape
    low, high = sorted((least, most))
    half = rng.uniform(low, high, 2) / 2 * np.array([width, height])
    middle = np.array(
        [
            rng.uniform(half[0] + 2, width - half[0] - 2),
            rng.uniform(half[1] + 2, height - half[1] - 2),
        ]
    )
    turn = np.sort(rng.uniform(0, 2 * np.pi, _CORNERS))
    reach = rng.uniform(0.7, 1.0, _CORNERS)
    corners = middle + np.stack([np.cos(turn), np.sin(turn)], axis=1) * reach[:, None] * half
    mask = np.zeros(shape, dtype=np.float32)
    cv2.fillPoly(mask, [np.rint(cv2.convexHull(corners.astype(np.float32))).astype(np.int32)], 1.0)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), 0.8), dtype=np.float32)
