"""A face set in motion: a few frames of a clip from one picture, and the same clip forged.

A head sways, a mouth opens, eyes blink, light changes: smoothly, and alike in both of a pair. The
forged clip is forged frame by frame, as swaps of videos are: every frame with the same settings,
but with landmarks that were found anew and tremble, so that the seam flickers. No clip leaves
memory.

Source: that frames are forged one by one, and what that leaves over time, is what Sabir et al.
2019, arXiv:1905.00582, section 1, and Zheng et al. 2021, arXiv:2108.06693, section 1, learn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.forensics.colours import keep_grey
from stillroom.forensics.face import PARTS, Face, Image, Points
from stillroom.forensics.method import Forged, Forgery
from stillroom.forensics.treatments import from_float, warp_affine

__all__ = ["forge_moving", "move_face"]

_SWAY, _TURN, _GROW = 0.02, 2.0, 0.02  # share of the side, degrees, share
_MOUTH, _EYES = 0.035, 0.012  # how far they move, as shares of the side
_LIGHT = 0.03
_TREMBLE = 0.006  # of the side: how far landmarks of one frame lie from the next one's

Floats = npt.NDArray[np.float64]


def move_face(face: Face, frames: int, rng: np.random.Generator) -> list[Face]:
    """Return a face in ``frames`` frames of a smooth motion, landmarks moved along."""
    side = face.image.shape[0]
    course = [_wave(frames, rng) for _ in range(7)]
    amount = rng.uniform(0, 1, 7)
    noise = float(rng.uniform(0, 2.5))
    found = []
    for at in range(frames):
        dx, dy, turn, grow, mouth, eyes, light = (
            float(course[number][at] * amount[number]) for number in range(7)
        )
        image, points = _deform(face.image, face.landmarks, mouth * _MOUTH, eyes * _EYES)
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), turn * _TURN, 1 + grow * _GROW)
        matrix[:, 2] += np.array([dx, dy]) * _SWAY * side
        moved = warp_affine(image, np.asarray(matrix, dtype=np.float64))
        places = np.asarray(points @ matrix[:, :2].T + matrix[:, 2], dtype=np.float32)
        lit = moved * (1 + light * _LIGHT) + rng.normal(0, noise, moved.shape)
        found.append(replace(face, image=from_float(lit), landmarks=places))
    return found


def forge_moving(
    faces: Sequence[Face], forgery: Forgery, frames: int, rng: np.random.Generator
) -> list[Forged]:
    """Return a clip of the first face, forged frame by frame, each with its real twin.

    Args:
        faces: As the forgery needs them.
        forgery: How each frame is forged; what it draws by lot is the same in all.
        frames: How many.
        rng: Of all chance.
    """
    courses = [move_face(face, frames, rng) for face in faces]
    lot = int(rng.integers(2**63))
    side = faces[0].image.shape[0]
    found = []
    for at in range(frames):
        given = [course[at] for course in courses]
        tremble = rng.normal(0, _TREMBLE * side, 2) + rng.normal(
            0, _TREMBLE / 2 * side, given[0].landmarks.shape
        )
        seen = np.asarray(given[0].landmarks + tremble, dtype=np.float32)
        given[0] = replace(given[0], landmarks=seen)
        forged = forgery.forge(given, np.random.default_rng(lot))
        found.append(keep_grey(forged, given[0].image))
    return found


def _wave(frames: int, rng: np.random.Generator) -> Floats:
    """Return a smooth course in [-1, 1]: two slow waves of random phase."""
    time = np.linspace(0, 1, frames)
    phases, speeds = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.3, 2.5, 2)
    waves = np.sin(2 * np.pi * speeds[:, None] * time + phases[:, None])
    return np.asarray(waves.mean(axis=0))


def _deform(image: Image, points: Points, mouth: float, eyes: float) -> tuple[Image, Points]:
    """Open or close mouth and eyes a little: a smooth shift of pixels about each."""
    side = image.shape[0]
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    down = np.zeros((side, side), dtype=np.float32)
    places = np.array(points, dtype=np.float32)
    for name, amount in (("mouth", mouth), ("eye_left", eyes), ("eye_right", eyes)):
        middle = points[PARTS[name]].mean(axis=0)
        reach = max(float(np.ptp(points[PARTS[name], 0])), 2.0) * 0.7
        across, along = columns - middle[0], rows - middle[1]
        weight = np.exp(-(across**2 + along**2) / (2 * reach**2))
        down += weight * along / reach * amount * side
        offset = places - middle
        near = np.exp(-(offset**2).sum(axis=1) / (2 * reach**2))
        places[:, 1] += near * offset[:, 1] / reach * amount * side
    moved = cv2.remap(
        image, columns, rows - down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(moved, dtype=np.uint8), places
