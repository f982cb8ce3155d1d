"""Colour transfer: giving one face the colours of another, measured within masks alone.

Statistics of masked pixels are of those pixels: zeros around a face would pull every mean to black.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.forensics.choices import Colour
from stillroom.forensics.face import Image, Mask
from stillroom.forensics.method import Forged
from stillroom.forensics.treatments import from_float

__all__ = ["keep_grey", "transfer_colour"]

Floats = npt.NDArray[np.float64]
_LEAST = 1e-3
_FEWEST_PIXELS = 16


def keep_grey(forged: Forged, base: Image) -> Forged:
    """Return a forgery and its twin without colour where the picture it is made of has none.

    Else the colour alone would tell the two apart, and a detector would learn it.

    Args:
        forged: The forgery.
        base: The picture that was forged, (H, W, 3).
    """
    if (base[..., :1] != base[..., 1:]).any():
        return forged
    image, twin = (
        np.repeat(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        for one in (forged.image, forged.twin)
    )
    return replace(
        forged, image=np.asarray(image, dtype=np.uint8), twin=np.asarray(twin, dtype=np.uint8)
    )


def transfer_colour(source: Image, target: Image, mask: Mask, how: Colour) -> Image:
    """Return the source in the target's colours.

    Args:
        source: RGB, (H, W, 3).
        target: RGB, (H, W, 3).
        mask: Where both are measured, above 0.5; (H, W).
        how: ``none``; ``mean``, the means are made equal; ``reinhard``, mean and spread of each
            channel in LAB (Reinhard et al. 2001, "Color Transfer between Images"); ``transport``,
            the linear optimal transport of one Gaussian to the other, which turns correlated
            colours too (Pitie and Kokaram 2007, "The linear Monge-Kantorovitch linear colour
            mapping for example-based colour transfer").
    """
    inside = mask > 0.5
    if how == "none" or int(inside.sum()) < _FEWEST_PIXELS:
        return source
    if how == "mean":
        shift = target[inside].mean(axis=0) - source[inside].mean(axis=0)
        return from_float(source.astype(np.float64) + shift)
    lab = [_to_lab(image) for image in (source, target)]
    pixels = [image[inside] for image in lab]
    means = [part.mean(axis=0) for part in pixels]
    if how == "reinhard":
        spreads = [np.maximum(part.std(axis=0), _LEAST) for part in pixels]
        moved = (lab[0] - means[0]) / spreads[0] * spreads[1] + means[1]
    else:
        matrix = _transport(*(np.cov(part.T) for part in pixels))
        moved = (lab[0] - means[0]) @ matrix + means[1]
    return _from_lab(moved)


def _transport(source: Floats, target: Floats) -> Floats:
    """Return the symmetric matrix T with T S T = R: the map between two centred Gaussians."""
    root = _root(source + _LEAST * np.eye(3))
    inverse = np.linalg.inv(root)
    return np.asarray(inverse @ _root(root @ target @ root) @ inverse)


def _root(matrix: Floats) -> Floats:
    sizes, axes = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray(axes * np.sqrt(np.maximum(sizes, 0)) @ axes.T)


def _to_lab(image: Image) -> Floats:
    # 8-bit LAB is too coarse to move statistics in; OpenCV's float LAB takes RGB in [0, 1].
    return np.asarray(
        cv2.cvtColor(image.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB), dtype=np.float64
    )


def _from_lab(lab: Floats) -> Image:
    lab = np.clip(lab, [0, -127, -127], [100, 127, 127])
    back = np.asarray(cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_LAB2RGB), dtype=np.float64)
    return from_float(back * 255.0)
