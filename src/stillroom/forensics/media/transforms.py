"""Image transforms: blending (Poisson), color transfer, landmark warping, JPEG, and jitter.

Functions take and return 8-bit RGB unless stated differently; all randomness comes from the
generator passed in. Statistics under a mask use the masked pixels only: zeros around a face would
bias every mean toward black.

Source: Perez et al. 2003, "Poisson Image Editing" (gradients); Burt and Adelson 1983, "A
Multiresolution Spline With Application to Image Mosaics" (bands).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.forensics.interfaces import BlendMode, ColorTransfer, ForgedImage
from stillroom.forensics.media.face_types import Face, Image, Mask, Points

__all__ = [
    "align_points",
    "blend",
    "composite",
    "compress_jpeg",
    "find_mask_box",
    "fit_size",
    "jitter_color",
    "jitter_detail",
    "preserve_grayscale",
    "rescale",
    "to_uint8",
    "transfer_color",
    "warp_affine",
    "warp_face",
]

Matrix = npt.NDArray[np.float64]
Pixels = TypeVar("Pixels", Image, Mask)


def to_uint8(image: npt.NDArray[np.floating]) -> Image:
    """Round to 8 bits; values out of range are clipped, never wrapped."""
    rounded = np.rint(image)
    np.minimum(np.maximum(rounded, 0, out=rounded), 255, out=rounded)
    return np.asarray(rounded, dtype=np.uint8)


def blend(source: Image, target: Image, mask: Mask) -> Image:
    """Blend source over target by a mask in [0, 1]; (H, W, 3)."""
    weight = np.asarray(cv2.merge([mask, mask, mask]))  # faster than broadcasting per pixel
    mixed = source.astype(np.float32)
    mixed *= weight
    mixed += (1 - weight) * target.astype(np.float32)
    return to_uint8(mixed)


def fit_size(image: Image, shape: tuple[int, int]) -> Image:
    """Resize an image to a height and width, unless it already has them."""
    if image.shape[:2] == shape:
        return image
    resized = cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, dtype=np.uint8)


def compress_jpeg(image: Image, quality: int) -> Image:
    """Compress and decode an image with JPEG at a quality of 1 to 100."""
    wrote, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not wrote:
        raise ValueError("OpenCV did not encode the image")
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])


def rescale(image: Image, share: float, *, interpolation: int = cv2.INTER_AREA) -> Image:
    """Downscale an image to a share of its size, and upscale it back bilinearly."""
    height, width = image.shape[:2]
    small_size = max(round(width * share), 2), max(round(height * share), 2)
    small = cv2.resize(image, small_size, interpolation=interpolation)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))


def jitter_color(image: Image, rng: np.random.Generator, *, strength: float = 1.0) -> Image:
    """Jitter channels, hue, saturation, brightness and contrast.

    At strength 1: each channel by up to 20 with probability 0.3, hue by up to 5 degrees,
    saturation and value by up to 15 %, brightness and contrast by up to 10 %.
    """
    out: npt.NDArray[np.float32] = image.astype(np.float32)
    if rng.random() < 0.3:
        out += rng.uniform(-20, 20, 3).astype(np.float32) * strength
    light = np.minimum(np.maximum(out, 0, out=out), 255, out=out)
    light /= 255.0
    # Planes one by one: numpy's loops over the last axis of an image are ten times slower.
    hue, *planes = (
        np.asarray(p, np.float32) for p in cv2.split(cv2.cvtColor(light, cv2.COLOR_RGB2HSV))
    )
    hue += rng.uniform(-5, 5) * strength
    np.add(hue, 360, out=hue, where=hue < 0)
    np.subtract(hue, 360, out=hue, where=hue >= 360)
    factors = 1 + rng.uniform(-0.15, 0.15, 2).astype(np.float32) * strength
    for plane, factor in zip(planes, factors, strict=True):
        plane *= factor
        np.minimum(np.maximum(plane, 0, out=plane), 1, out=plane)
    out = np.asarray(cv2.cvtColor(cv2.merge([hue, *planes]), cv2.COLOR_HSV2RGB), np.float32)
    out *= 255.0
    gain, shift = 1 + rng.uniform(-0.1, 0.1) * strength, rng.uniform(-0.1, 0.1) * strength * 128
    middle = float(out.mean())
    out -= middle
    out *= gain
    out += middle
    out += shift
    return to_uint8(out)


def jitter_detail(image: Image, rng: np.random.Generator) -> Image:
    """Either downscale and upscale by a factor of 2 or 4, or sharpen."""
    if rng.random() < 0.5:
        return rescale(image, 1 / float(rng.choice([2, 4])), interpolation=cv2.INTER_NEAREST)
    amount = float(rng.uniform(0.2, 0.5))
    plain = image.astype(np.float32)
    return to_uint8(plain + amount * 2 * (plain - cv2.GaussianBlur(plain, (0, 0), 1.0)))


def warp_affine(image: Pixels, matrix: Matrix, shape: tuple[int, int] | None = None) -> Pixels:
    """Warp an image or mask by a 2 x 3 matrix; images are reflected at the border.

    Args:
        image: (H, W, 3), or a mask (H, W).
        matrix: Maps points of the input to points of the result, as x, y.
        shape: Height and width of the result; by default those of the input.
    """
    height, width = shape or image.shape[:2]
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
    """Return the least-squares similarity from source to target points, 2 x 3.

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


def find_mask_box(mask: Mask) -> tuple[int, int, int, int]:
    """Return x, y, width and height of a mask at 0.5 of its maximum; zeros if empty."""
    covered = mask > 0.5 * max(float(mask.max()), 1e-6)
    if not covered.any():
        return 0, 0, 0, 0
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


Floats = npt.NDArray[np.float64]
_EPSILON = 1e-3
_MIN_PIXELS = 16


def preserve_grayscale(forged: ForgedImage, base: Image) -> ForgedImage:
    """Remove the color of a forgery and its twin where the base image has none.

    Color alone would separate the two, and a detector would learn it.

    Args:
        forged: The forgery.
        base: The image that was forged, (H, W, 3).
    """
    if (base[..., :1] != base[..., 1:]).any():
        return forged
    image, twin = (
        np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        for picture in (forged.image, forged.twin)
    )
    return replace(
        forged, image=np.asarray(image, dtype=np.uint8), twin=np.asarray(twin, dtype=np.uint8)
    )


def transfer_color(source: Image, target: Image, mask: Mask, how: ColorTransfer) -> Image:
    """Transfer the color statistics of the target to the source.

    Args:
        source: RGB, (H, W, 3).
        target: RGB, (H, W, 3).
        mask: Region of both to measure, above 0.5; (H, W).
        how: ``none``; ``mean``, equal means; ``reinhard``, mean and standard deviation of each
            channel in LAB (Reinhard et al. 2001, "Color Transfer between Images"); ``transport``,
            the linear optimal transport between Gaussians, which rotates correlated colors too
            (Pitie and Kokaram 2007, "The linear Monge-Kantorovitch linear colour mapping for
            example-based colour transfer").
    """
    inside = mask > 0.5
    if how == "none" or int(inside.sum()) < _MIN_PIXELS:
        return source
    if how == "mean":
        shift = target[inside].mean(axis=0) - source[inside].mean(axis=0)
        return to_uint8(source.astype(np.float64) + shift)
    lab = [_to_lab(image) for image in (source, target)]
    pixels = [image[inside] for image in lab]
    means = [part.mean(axis=0) for part in pixels]
    if how == "reinhard":
        spreads = [np.maximum(part.std(axis=0), _EPSILON) for part in pixels]
        moved = (lab[0] - means[0]) / spreads[0] * spreads[1] + means[1]
    else:
        matrix = _transport(*(np.cov(part.T) for part in pixels))
        moved = (lab[0] - means[0]) @ matrix + means[1]
    return _from_lab(moved)


def _transport(source: Floats, target: Floats) -> Floats:
    """Return the symmetric matrix T with T S T = R: the map between two centered Gaussians."""
    root = _root(source + _EPSILON * np.eye(3))
    inverse = np.linalg.inv(root)
    return np.asarray(inverse @ _root(root @ target @ root) @ inverse)


def _root(matrix: Floats) -> Floats:
    sizes, axes = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray(axes * np.sqrt(np.maximum(sizes, 0)) @ axes.T)


def _to_lab(image: Image) -> Floats:
    # 8-bit LAB is too coarse for statistics; OpenCV's float LAB takes RGB in [0, 1].
    return np.asarray(
        cv2.cvtColor(image.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB), dtype=np.float64
    )


def _from_lab(lab: Floats) -> Image:
    lab = np.clip(lab, [0, -127, -127], [100, 127, 127])
    back = np.asarray(cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_LAB2RGB), dtype=np.float64)
    return to_uint8(back * 255.0)


_RIM = 2
_LEVELS = 4


def composite(source: Image, target: Image, mask: Mask, how: BlendMode) -> Image:
    """Composite the source inside a mask over the target."""
    if how == "poisson":
        hard = (mask > 0.5).astype(np.uint8) * 255
        # A mask that touches the border shifts the cloned region, or raises.
        hard[:_RIM] = hard[-_RIM:] = 0
        hard[:, :_RIM] = hard[:, -_RIM:] = 0
        x, y, width, height = find_mask_box(np.asarray(hard / 255, dtype=np.float32))
        if width < 3 or height < 3:
            return target
        # OpenCV centers the mask's box at this point; any other point moves the face.
        middle = (x + width // 2, y + height // 2)
        return np.asarray(
            cv2.seamlessClone(source, target, hard, middle, cv2.NORMAL_CLONE), dtype=np.uint8
        )
    if how == "laplacian":
        return _blend_laplacian(source, target, mask)
    return blend(source, target, mask)


def _blend_laplacian(source: Image, target: Image, mask: Mask) -> Image:
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
        pyramid = [part]
        for _ in range(_LEVELS):
            pyramid.append(cv2.pyrDown(pyramid[-1]))
        fine = [
            np.asarray(pyramid[level]) - np.asarray(cv2.pyrUp(pyramid[level + 1]))
            for level in range(_LEVELS)
        ]
        bands.append([*fine, np.asarray(pyramid[-1])])
    joined = None
    for level in range(_LEVELS, -1, -1):
        weight = np.asarray(weights[level])[..., None]
        mixed = weight * bands[0][level] + (1 - weight) * bands[1][level]
        joined = mixed if joined is None else np.asarray(cv2.pyrUp(joined)) + mixed
    return to_uint8(np.asarray(joined)[:height, :width])


def warp_face(source: Face, target: Face, *, piecewise: bool = True) -> Image:
    """Warp the source to the target's landmarks and size, (H, W, 3).

    A similarity aligns all landmarks; ``piecewise`` then moves each one to its exact place.
    """
    height, width = target.image.shape[:2]
    matrix = align_points(source.landmarks, target.landmarks)
    moved = warp_affine(source.image, matrix, (height, width))
    if not piecewise:
        return moved
    points = source.landmarks @ matrix[:, :2].T + matrix[:, 2]
    return _warp_triangles(moved, np.asarray(points, np.float32), target.landmarks)


def _warp_triangles(image: Image, points: Points, target: Points) -> Image:
    """Warp an image from ``points`` to ``target``; eight points of the border stay fixed."""
    height, width = image.shape[:2]
    frame = np.array(
        [[x, y] for x in (0, width / 2, width - 1) for y in (0, height / 2, height - 1)],
        dtype=np.float32,
    )
    frame = frame[[0, 1, 2, 3, 5, 6, 7, 8]]  # drop the center
    start = np.concatenate([points, frame])
    stop = np.concatenate([np.clip(target, 0, [width - 1, height - 1]), frame])
    label = np.full((height, width), -1, dtype=np.int32)
    matrices: list[npt.NDArray[np.floating]] = []
    for triangle in _triangulate(stop, width, height):
        cv2.fillConvexPoly(label, np.rint(stop[triangle]).astype(np.int32), len(matrices))
        back = cv2.getAffineTransform(
            stop[triangle].astype(np.float32), start[triangle].astype(np.float32)
        )
        matrices.append(np.asarray(back, dtype=np.float64))
    if not matrices:
        return image
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    pixel_matrices = np.asarray(matrices, dtype=np.float32)[np.maximum(label, 0)]
    from_x, from_y = (
        row[..., 0] * x + row[..., 1] * y + row[..., 2]
        for row in (pixel_matrices[..., 0, :], pixel_matrices[..., 1, :])
    )
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
    """Return the Delaunay triangles as indices of the points."""
    plane = cv2.Subdiv2D((0, 0, width + 1, height + 1))
    for point in points:
        plane.insert((float(point[0]), float(point[1])))
    triangles = []
    for corners in plane.getTriangleList():
        three = np.asarray(corners, dtype=np.float32).reshape(3, 2)
        gaps = np.linalg.norm(points[None] - three[:, None], axis=2)
        corner_indices = gaps.argmin(axis=1)
        if gaps.min(axis=1).max() < 0.5 and len(set(corner_indices.tolist())) == 3:
            triangles.append([int(index) for index in corner_indices])
    return triangles
