"""Joining a source into a target: by weights, by gradients, by frequency bands.

Source: Perez et al. 2003, "Poisson Image Editing" (gradients); Burt and Adelson 1983, "A
Multiresolution Spline With Application to Image Mosaics" (bands).
"""

from __future__ import annotations

import cv2
import numpy as np

from stillroom.forensics.choices import Blending
from stillroom.forensics.face import Image, Mask
from stillroom.forensics.treatments import blend, from_float, mask_box

__all__ = ["join"]

_RIM = 2
_LEVELS = 4


def join(source: Image, target: Image, mask: Mask, how: Blending) -> Image:
    """Return the source within the mask, the target without.

    Args:
        source: RGB, (H, W, 3), aligned to the target.
        target: RGB, (H, W, 3).
        mask: In [0, 1], (H, W); ``poisson`` takes it at 0.5, without its soft rim.
        how: ``alpha``, ``poisson`` or ``laplacian``.
    """
    if how == "poisson":
        return _join_gradients(source, target, mask)
    if how == "laplacian":
        return _join_bands(source, target, mask)
    return blend(source, target, mask)


def _join_gradients(source: Image, target: Image, mask: Mask) -> Image:
    hard = (mask > 0.5).astype(np.uint8) * 255
    # A mask that touches the border shifts what is cloned, or throws.
    hard[:_RIM] = hard[-_RIM:] = 0
    hard[:, :_RIM] = hard[:, -_RIM:] = 0
    x, y, width, height = mask_box(np.asarray(hard / 255, dtype=np.float32))
    if width < 3 or height < 3:
        return target
    # OpenCV puts the middle of the mask's box at this point; any other point moves the face.
    middle = (x + width // 2, y + height // 2)
    return np.asarray(
        cv2.seamlessClone(source, target, hard, middle, cv2.NORMAL_CLONE), dtype=np.uint8
    )


def _join_bands(source: Image, target: Image, mask: Mask) -> Image:
    height, width = mask.shape
    side = 1 << _LEVELS
    bottom, right = -height % side, -width % side
    parts = [
        cv2.copyMakeBorder(part.astype(np.float32), 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
        for part in (source, target, mask)
    ]
    weights = [parts[2]]
    for _ in range(_LEVELS):
        weights.append(cv2.pyrDown(weights[-1]))
    bands = []
    for part in parts[:2]:
        whole = [part]
        for _ in range(_LEVELS):
            whole.append(cv2.pyrDown(whole[-1]))
        fine = [
            np.asarray(whole[at]) - np.asarray(cv2.pyrUp(whole[at + 1])) for at in range(_LEVELS)
        ]
        bands.append([*fine, np.asarray(whole[-1])])
    joined = None
    for at in range(_LEVELS, -1, -1):
        weight = np.asarray(weights[at])[..., None]
        mixed = weight * bands[0][at] + (1 - weight) * bands[1][at]
        joined = mixed if joined is None else np.asarray(cv2.pyrUp(joined)) + mixed
    return from_float(np.asarray(joined)[:height, :width])
