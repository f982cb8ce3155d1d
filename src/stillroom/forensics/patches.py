"""Pieces of a picture, of a shape and at a place drawn by lot."""

from __future__ import annotations

import cv2
import numpy as np

from stillroom.forensics.face import Mask

__all__ = ["draw_patch"]

_CORNERS = 10


def draw_patch(shape: tuple[int, int], rng: np.random.Generator, least: float, most: float) -> Mask:
    """Return the soft mask of an irregular piece that lies within the picture, (H, W).

    Args:
        shape: Height and width of the picture.
        rng: Of shape and place.
        least: Least width and height, as a share of the picture's.
        most: Most width and height.
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
