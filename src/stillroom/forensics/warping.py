"""Bringing one face onto another by its landmarks: a similarity, then triangle by triangle."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.forensics.face import Face, Image, Points
from stillroom.forensics.treatments import align_points, warp_affine

__all__ = ["warp_face"]


def warp_face(source: Face, target: Face, *, piecewise: bool = True) -> Image:
    """Return the source's picture with its landmarks on the target's, (H, W, 3) of the target.

    Args:
        source: The face that is moved.
        target: The face whose place it takes.
        piecewise: Whether every triangle of landmarks is brought to its place; else the whole is
            only turned, scaled and moved.
    """
    height, width = target.image.shape[:2]
    matrix = align_points(source.landmarks, target.landmarks)
    placed = source.image
    if placed.shape[:2] != (height, width):
        larger = np.zeros((max(height, placed.shape[0]), max(width, placed.shape[1]), 3), np.uint8)
        larger[: placed.shape[0], : placed.shape[1]] = placed
        placed = larger
    moved = warp_affine(placed, matrix)[:height, :width]
    if not piecewise:
        return np.ascontiguousarray(moved)
    points = source.landmarks @ matrix[:, :2].T + matrix[:, 2]
    return _warp_triangles(
        np.ascontiguousarray(moved), np.asarray(points, np.float32), target.landmarks
    )


def _warp_triangles(image: Image, points: Points, wanted: Points) -> Image:
    """Return the image with ``points`` at ``wanted``; the corners stay."""
    height, width = image.shape[:2]
    frame = np.array(
        [[x, y] for x in (0, width / 2, width - 1) for y in (0, height / 2, height - 1)],
        dtype=np.float32,
    )
    frame = frame[[0, 1, 2, 3, 5, 6, 7, 8]]  # the middle is no part of a frame
    start = np.concatenate([points, frame])
    stop = np.concatenate([np.clip(wanted, 0, [width - 1, height - 1]), frame])
    label = np.full((height, width), -1, dtype=np.int32)
    matrices: list[npt.NDArray[np.floating]] = []
    for triangle in _triangulate(stop, width, height):
        cv2.fillConvexPoly(label, np.rint(stop[triangle]).astype(np.int32), len(matrices))
        back = cv2.getAffineTransform(
            stop[triangle].astype(np.float32), start[triangle].astype(np.float32)
        )
        matrices.append(np.asarray(back, dtype=np.float64))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if not matrices:
        return image
    each = np.asarray(matrices, dtype=np.float32)[np.maximum(label, 0)]
    from_x = each[..., 0, 0] * x + each[..., 0, 1] * y + each[..., 0, 2]
    from_y = each[..., 1, 0] * x + each[..., 1, 1] * y + each[..., 1, 2]
    inside = label >= 0
    moved = cv2.remap(
        image,
        np.where(inside, from_x, x),
        np.where(inside, from_y, y),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(moved, dtype=np.uint8)


def _triangulate(points: Points, width: int, height: int) -> list[list[int]]:
    """Return Delaunay's triangles as indices of the points."""
    plane = cv2.Subdiv2D((0, 0, width + 1, height + 1))
    for point in points:
        plane.insert((float(point[0]), float(point[1])))
    triangles = []
    for corners in plane.getTriangleList():
        three = np.asarray(corners, dtype=np.float32).reshape(3, 2)
        gaps = np.linalg.norm(points[None] - three[:, None], axis=2)
        found = gaps.argmin(axis=1)
        if gaps.min(axis=1).max() < 0.5 and len(set(found.tolist())) == 3:
            triangles.append([int(at) for at in found])
    return triangles
