"""Face: an image of one face with 68 landmarks, and the canonical landmark layout.

Landmarks follow the iBUG 68-point scheme: jaw 0-16 from the image's left, brows 17-26, nose 27-35,
eyes 36-47, mouth 48-67. Faces are detected and cropped in ``face_detection``. Imports numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["MIRRORED", "PARTS", "Face", "Image", "Mask", "Points", "canonical_points"]

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
