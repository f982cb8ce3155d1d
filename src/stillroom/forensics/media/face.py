"""Face: an image of one face with 68 landmarks, and the canonical landmark layout.

Landmarks follow the iBUG 68-point scheme: jaw 0-16 from the image's left, brows 17-26, nose 27-35,
eyes 36-47, mouth 48-67. Imports numpy only.

Source: Li et al. 2020, "Face X-ray", arXiv:1912.13458, section 3.1; Shiohara and Yamasaki 2022,
"Self-Blended Images", arXiv:2204.08376, section 3.2 and its supplement (soft masks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

__all__ = [
    "HULL_KINDS",
    "MIRRORED",
    "PARTS",
    "Face",
    "HullKind",
    "Image",
    "Mask",
    "Points",
    "canonical_points",
    "draw_hull",
    "draw_patch",
    "feather",
    "soften",
    "warp_mask",
]


Image = npt.NDArray[np.uint8]


Mask = npt.NDArray[np.float32]


Points = npt.NDArray[np.float32]


PARTS = {
    "jaw": slice(0, 17),
    "brow_left": slice(17, 22),
    "brow_right": slice(22, 27),
    "nose": slice(27, 36),
    "eye_left": slice(36, 42),
    "eye_right": slice(42, 48),
    "mouth": slice(48, 68),
}


"""Landmark slices; left and right are those of the image."""


@dataclass(frozen=True, eq=False)
class Face:
    """One face: RGB image (H, W, 3), landmarks (68, 2) as x, y in pixels, and an identity.

    ``identity`` groups images of one person. ``landmark_source`` states the precision: ``drawn`` is
    exact, ``mesh`` is measured, ``template`` is a mean face fitted to five points. ``wide`` is the
    width in pixels of the source file, ``codings`` its coding as in ``DecodedImage.coding``; 0 and
    empty without a file.
    """

    image: Image
    landmarks: Points
    name: str
    identity: str
    digest: str
    landmark_source: Literal["drawn", "mesh", "template"] = "drawn"
    wide: float = 0.0
    codings: tuple[str, ...] = ()


def canonical_points(
    *, eyes: float = 0.42, mouth: float = 0.36, chin: float = 1.18, nose: float = 0.2
) -> Points:
    """Return the 68 landmarks of a frontal face, (68, 2), in half face widths from the nose bridge.

    Args:
        eyes: Half the distance between the eye centers.
        mouth: Half the mouth width.
        chin: Distance of the chin below the bridge.
        nose: Half the nose width.
    """
    turn = np.linspace(0.0, np.pi, 17)
    jaw = np.stack([-np.cos(turn), -0.05 + (chin + 0.05) * np.sin(turn) ** 0.85], axis=1)
    jaw[:, 0] *= 1.0 - 0.12 * np.sin(turn)
    along = np.linspace(-1.0, 1.0, 5)
    brow = np.stack([along * 0.3, -0.34 - 0.08 * (1 - along**2)], axis=1)
    bridge = np.stack([np.zeros(4), np.linspace(-0.05, 0.36, 4)], axis=1)
    base = np.stack([along * nose, 0.46 + 0.05 * (1 - along**2)], axis=1)
    lid = np.array(
        [[-0.17, 0], [-0.07, -0.07], [0.07, -0.07], [0.17, 0], [0.07, 0.06], [-0.07, 0.06]]
    )
    outer_turn = np.linspace(np.pi, 3 * np.pi, 13)[:12]
    outer = np.stack([mouth * np.cos(outer_turn), 0.76 + 0.11 * np.sin(outer_turn)], axis=1)
    inner_turn = np.linspace(np.pi, 3 * np.pi, 9)[:8]
    inner = np.stack([mouth * 0.75 * np.cos(inner_turn), 0.76 + 0.03 * np.sin(inner_turn)], axis=1)
    eye_offset = np.array([eyes, 0.0])
    parts = [
        jaw,
        brow - eye_offset,
        brow + eye_offset,
        bridge,
        base,
        lid - eye_offset,
        lid + eye_offset,
        outer,
        inner,
    ]
    return np.concatenate(parts).astype(np.float32)


def _mirror_order() -> npt.NDArray[np.intp]:
    points = canonical_points()
    flipped = points * np.array([-1.0, 1.0], dtype=np.float32)
    order = np.empty(68, dtype=np.intp)
    for part in (
        slice(0, 17),
        slice(17, 27),
        slice(27, 36),
        slice(36, 48),
        slice(48, 60),
        slice(60, 68),
    ):
        gaps = np.linalg.norm(points[part][:, None] - flipped[part][None], axis=2)
        order[part] = gaps.argmin(axis=1) + part.start
    return order


MIRRORED = _mirror_order()


"""Index of the landmark that replaces each one under a horizontal flip, (68,)."""


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
