"""Source faces: procedurally drawn, or read from a folder with consent.

Drawn faces are not photographs and do not train a detector of photographs; they serve to try and
test every step, and to make marked forgeries without a person. Each is determined by its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.forensics.media.face_types import PARTS, Face, Points, canonical_points
from stillroom.forensics.media.images import IMAGE_SUFFIXES, load_image
from stillroom.forensics.settings import DetectorSource, DrawnSource, SetFaces, SplitSettings
from stillroom.forensics.synthesis.consent import (
    list_consented_files,
    require_consent,
    require_synthetic_images,
)
from stillroom.forensics.synthesis.pairing import derive_person_id
from stillroom.provenance import digest_bytes, digest_file, digest_text

__all__ = [
    "FaceSource",
    "choose_split",
    "draw_face",
    "open_faces",
    "split_identities",
]


@dataclass(frozen=True)
class _DrawnFaces:
    seed: int
    count: int
    size: int
    origin: str = "drawn"
    consent: str = ""
    num_skipped: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Face:
        return draw_face(self.seed, number, self.size)

    def identity(self, number: int) -> str:
        return _name_drawn_face(self.seed, number)

    def path(self, number: int) -> Path | None:
        return None


@dataclass(frozen=True)
class _FolderFaces:
    faces: tuple[Face, ...]
    paths: tuple[Path, ...]
    origin: str
    consent: str
    num_skipped: int

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, number: int) -> Face:
        return self.faces[number]

    def identity(self, number: int) -> str:
        return self.faces[number].identity

    def path(self, number: int) -> Path | None:
        return self.paths[number]


FaceSource = _DrawnFaces | _FolderFaces
"""Indexed collection of faces.

``origin`` is ``drawn``, ``synthetic: GENERATOR`` or ``person``; ``consent`` the id of the consent
record, empty if no person is shown; ``num_skipped`` counts images that could not be used.
"""


def open_faces(
    settings: SetFaces | DetectorSource,
    uses: Sequence[str],
    *,
    seed: int,
    count: int,
    size: int,
    margin: float,
    warn: Callable[[str], None],
) -> FaceSource:
    """Open the source faces.

    Raises:
        DataError: If the folder has no face, the consent does not cover the use, or images
            declared synthetic were taken by a camera.
    """
    if isinstance(settings, DrawnSource):
        return _DrawnFaces(seed, count, size)
    folder = Path(settings.folder)
    advice = "check the path, or set faces: {type: drawn}"
    pictures = list_consented_files(folder, IMAGE_SUFFIXES, "images", advice)[:count]
    origin, consent = require_consent(
        settings, pictures, uses, refuse=require_synthetic_images, warn=warn
    )
    faces, paths = _find_faces(pictures, folder, size, margin, warn)
    num_skipped = len(pictures) - len(faces)
    if num_skipped:
        warn(f"{num_skipped} of {len(pictures)} images were skipped")
    return _FolderFaces(tuple(faces), tuple(paths), origin, consent, num_skipped)


def choose_split(block: str, seed: int, split: SplitSettings) -> str:
    """Return the split of a person, or of a block of people, by a hash of the name alone."""
    position = int(digest_text(f"{seed} {block}")[:12], 16) / 16**12
    if position < split.test:
        return "test"
    return "validation" if position < split.test + split.validation else "train"


def _find_faces(
    pictures: Sequence[Path], folder: Path, size: int, margin: float, warn: Callable[[str], None]
) -> tuple[list[Face], list[Path]]:
    from stillroom.forensics.media.face_detection import FaceFinder, compute_square_side, crop_face

    finder = FaceFinder()
    faces, paths = [], []
    for path in pictures:
        name = path.name if path == folder else path.relative_to(folder).as_posix()
        try:
            picture = load_image(path)
        except DataError as error:
            warn(f"skipped: {error.problems[0].what}")
            continue
        detections = finder.find(picture.image)
        if not detections:
            warn(f"skipped: {name} shows no face")
            continue
        marks = finder.landmarks(picture.image, detections[0])
        image, points = crop_face(picture.image, marks, size, margin=margin)
        digest, person = digest_file(path), derive_person_id(path, folder)
        wide, codings = compute_square_side(marks, margin), (picture.coding,)
        source = finder.landmark_source
        faces.append(Face(image, points, name, person, digest, source, wide, codings))
        paths.append(path)
    if not faces:
        raise DataError(
            f"none of {len(pictures)} images in {folder} shows a face",
            code="forensics.no-faces",
            where=str(folder),
            expected="images with a face of 64 pixels or more",
            next="see the lines above for the reason of each image",
        )
    return faces, paths


_FINE = 2  # supersampling, for smooth edges
Color = tuple[float, float, float]


def draw_face(seed: int, number: int, size: int = 256) -> Face:
    """Draw a face."""
    rng = np.random.default_rng([seed, number, 0x0FACE])
    side = size * _FINE
    points = _place_landmarks(rng, side)
    canvas = _draw_background(rng, side)
    dark, light = np.array([80.0, 52.0, 38.0]), np.array([236.0, 198.0, 172.0])
    red, green, blue = dark + (light - dark) * rng.uniform(0, 1) + rng.normal(0, 5, 3)
    skin = float(red), float(green), float(blue)
    hair = tuple(float(part) for part in rng.uniform(20, 120) * np.array([1.0, 0.8, 0.6]))
    scale = float(np.ptp(points[PARTS["jaw"], 0])) / 2
    _draw_body(canvas, points, skin, hair, scale, rng)
    _draw_skin(canvas, points, skin, scale, rng)
    iris = tuple(float(part) for part in rng.uniform(30, 130) * rng.uniform(0.5, 1.2, 3))
    for name in ("eye_left", "eye_right"):
        _draw_eye(canvas, points[PARTS[name]], scale, iris)
    for name in ("brow_left", "brow_right"):
        line = [np.rint(points[PARTS[name]]).astype(np.int32)]
        cv2.polylines(canvas, line, False, hair, max(int(scale * 0.09), 1), cv2.LINE_AA)
    _draw_nose(canvas, points[PARTS["nose"]], skin, scale)
    _draw_mouth(canvas, points[PARTS["mouth"]], skin, rng)
    # Downsample, and add lens blur and sensor noise.
    small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    blurred = np.asarray(cv2.GaussianBlur(small, (0, 0), rng.uniform(0.4, 0.8)), dtype=np.float32)
    noise = rng.normal(0, 1, blurred.shape).astype(np.float32)
    grain = np.asarray(cv2.GaussianBlur(noise, (0, 0), 0.6), dtype=np.float32)
    exposed = blurred * rng.uniform(0.85, 1.1) + 5.0 * grain
    image = np.asarray(np.clip(np.rint(exposed), 0, 255), dtype=np.uint8)
    landmarks = np.asarray((points + 0.5) / _FINE - 0.5, dtype=np.float32)
    name = _name_drawn_face(seed, number)
    return Face(image, landmarks, name, name, digest_bytes(image.tobytes()))


def _name_drawn_face(seed: int, number: int) -> str:
    """Return the name of a drawn face, which is also its identity."""
    return f"drawn-{seed}-{number}"


def _place_landmarks(rng: np.random.Generator, side: int) -> Points:
    """Return landmarks with random proportions, size, position and tilt."""
    points = canonical_points(
        eyes=rng.uniform(0.38, 0.46),
        mouth=rng.uniform(0.29, 0.42),
        chin=rng.uniform(1.05, 1.28),
        nose=rng.uniform(0.15, 0.24),
    )
    points += rng.normal(0, 0.008, points.shape).astype(np.float32)
    tilt, scale = rng.uniform(-0.12, 0.12), side * rng.uniform(0.25, 0.3)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    middle = side * np.array([0.5, 0.47]) + rng.normal(0, side * 0.015, 2)
    return np.asarray(points @ turn * scale + middle, dtype=np.float32)


def _noise(rng: np.random.Generator, side: int, cells: int) -> npt.NDArray[np.float32]:
    coarse = rng.normal(0, 1, (cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))


def _draw_background(rng: np.random.Generator, side: int) -> npt.NDArray[np.float32]:
    top, bottom = rng.uniform(40, 220, (2, 3))
    ramp = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    canvas = np.broadcast_to(top * (1 - ramp) + bottom * ramp, (side, side, 3)).astype(np.float32)
    canvas = canvas + 12 * _noise(rng, side, 6)[..., None] + 5 * _noise(rng, side, 40)[..., None]
    return np.ascontiguousarray(canvas)


def _draw_body(
    canvas: npt.NDArray[np.float32],
    points: Points,
    skin: Color,
    hair: tuple[float, ...],
    scale: float,
    rng: np.random.Generator,
) -> None:
    """Draw the parts behind the face: shoulders, neck, hair, ears."""
    middle, chin = points[27], points[8]
    cloth = tuple(float(part) for part in rng.uniform(20, 220, 3))
    foot = (int(chin[0]), int(chin[1] + 1.25 * scale))
    cv2.ellipse(canvas, foot, (int(scale * 1.9), int(scale)), 0, 0, 360, cloth, -1, cv2.LINE_AA)
    shade = tuple(part * 0.82 for part in skin)
    neck = (int(chin[0]), int(chin[1] + 0.1 * scale))
    cv2.ellipse(
        canvas, neck, (int(scale * 0.55), int(scale * 0.7)), 0, 0, 360, shade, -1, cv2.LINE_AA
    )
    crown = (int(middle[0]), int(middle[1] - 0.28 * scale))
    axes = (int(scale * rng.uniform(1.05, 1.22)), int(scale * rng.uniform(1.05, 1.3)))
    cv2.ellipse(canvas, crown, axes, 0, 0, 360, hair, -1, cv2.LINE_AA)
    for ear in (points[1], points[15]):
        center = (int(ear[0]), int(ear[1]))
        cv2.ellipse(
            canvas,
            center,
            (int(scale * 0.13), int(scale * 0.24)),
            0,
            0,
            360,
            shade,
            -1,
            cv2.LINE_AA,
        )


def _draw_skin(
    canvas: npt.NDArray[np.float32],
    points: Points,
    skin: Color,
    scale: float,
    rng: np.random.Generator,
) -> None:
    """Draw the face with lateral light and uneven skin color."""
    side = canvas.shape[0]
    turn = np.linspace(np.pi, 2 * np.pi, 24)
    middle = (points[0] + points[16]) / 2
    half = np.linalg.norm(points[16] - points[0]) / 2
    forehead = np.stack(
        [middle[0] - half * np.cos(turn - np.pi), middle[1] + 0.98 * half * np.sin(turn)], axis=1
    )
    outline = np.concatenate([points[PARTS["jaw"]], forehead[::-1]])
    shape = np.zeros((side, side), dtype=np.float32)
    cv2.fillPoly(shape, [np.rint(outline).astype(np.int32)], 1.0, cv2.LINE_AA)
    across = (np.arange(side, dtype=np.float32)[None] - middle[0]) / half
    down = (np.arange(side, dtype=np.float32)[:, None] - points[30][1]) / half
    light = 1.0 + rng.uniform(-0.16, 0.16) * across - 0.13 * across**2 - 0.07 * down**2
    texture = 1.0 + 0.02 * _noise(rng, side, 24) + 0.025 * _noise(rng, side, 90)
    shaded = np.array(skin, dtype=np.float32) * (light * texture)[..., None]
    for cheek in (points[[31, 2]].mean(axis=0), points[[35, 14]].mean(axis=0)):
        distance = np.hypot(
            np.arange(side)[None] - cheek[0], np.arange(side)[:, None] - cheek[1]
        ) / (0.35 * scale)
        shaded += np.exp(-(distance[..., None] ** 2)) * np.array([14.0, -4.0, -4.0])
    canvas += shape[..., None] * (shaded - canvas)


def _draw_eye(
    canvas: npt.NDArray[np.float32], eye: Points, scale: float, iris: tuple[float, ...]
) -> None:
    lid = [np.rint(eye).astype(np.int32)]
    inside = np.zeros(canvas.shape[:2], dtype=np.float32)
    cv2.fillPoly(inside, lid, 1.0, cv2.LINE_AA)
    ball = np.full_like(canvas, 232.0)
    center = tuple(int(part) for part in np.rint(eye.mean(axis=0)))
    cv2.circle(ball, center, max(int(scale * 0.075), 1), iris, -1, cv2.LINE_AA)
    cv2.circle(ball, center, max(int(scale * 0.034), 1), (12.0, 12.0, 12.0), -1, cv2.LINE_AA)
    glint = (center[0] + int(scale * 0.02), center[1] - int(scale * 0.025))
    cv2.circle(ball, glint, max(int(scale * 0.014), 1), (250.0, 250.0, 250.0), -1, cv2.LINE_AA)
    canvas += inside[..., None] * (ball - canvas)
    dark = (42.0, 30.0, 26.0)
    upper = [np.rint(eye[[0, 1, 2, 3]]).astype(np.int32)]
    cv2.polylines(canvas, upper, False, dark, max(int(scale * 0.03), 1), cv2.LINE_AA)


def _draw_nose(canvas: npt.NDArray[np.float32], nose: Points, skin: Color, scale: float) -> None:
    shade = tuple(part * 0.74 for part in skin)
    line = np.rint(np.stack([nose[0], nose[3], nose[8]])).astype(np.int32)
    thick = max(int(scale * 0.025), 1)
    cv2.polylines(canvas, [line], False, shade, thick, cv2.LINE_AA)
    dark = tuple(part * 0.45 for part in skin)
    for nostril in (nose[5], nose[7]):
        hole = (int(nostril[0]), int(nostril[1]))
        axes = (max(int(scale * 0.05), 1), max(int(scale * 0.025), 1))
        cv2.ellipse(canvas, hole, axes, 0, 0, 360, dark, -1, cv2.LINE_AA)
    cv2.polylines(canvas, [np.rint(nose[4:]).astype(np.int32)], False, shade, thick, cv2.LINE_AA)


def _draw_mouth(
    canvas: npt.NDArray[np.float32], mouth: Points, skin: Color, rng: np.random.Generator
) -> None:
    red = np.array(skin) * 0.55 + np.array([150.0, 50.0, 60.0]) * rng.uniform(0.35, 0.5)
    color = tuple(float(part) for part in red)
    cv2.fillPoly(canvas, [np.rint(mouth[:12]).astype(np.int32)], color, cv2.LINE_AA)
    gap = tuple(float(part) for part in red * 0.4)
    cv2.fillPoly(canvas, [np.rint(mouth[12:]).astype(np.int32)], gap, cv2.LINE_AA)


def split_identities(
    identities: Sequence[str], seed: int, split: SplitSettings, subject: str
) -> dict[str, list[int]]:
    """Return indices by split; a hash of the name assigns each person to one split.

    Raises:
        DataError: If a split is empty.
    """
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for number, identity in enumerate(identities):
        splits[choose_split(identity, seed, split)].append(number)
    empty = [name for name, numbers in splits.items() if not numbers]
    if empty:
        raise DataError(
            f"of {len(identities)} {subject} none remains for {' and '.join(empty)}",
            code="forensics.too-few-faces",
            where="split",
            expected="enough people for disjoint train, validation and test splits",
            next=f"raise count, add {subject} of more people, or change split and seed",
        )
    return splits
