"""The watermark is read back after what happens to pictures, and never where there is none."""

import cv2
import numpy as np
import pytest

from stillroom.errors import DataError
from stillroom.forensics.media.transforms import compress_jpeg
from stillroom.forensics.synthesis.faces import draw_face
from stillroom.forensics.watermark.error_correction import (
    compute_coded_length,
    decode_soft,
    encode_bits,
)
from stillroom.forensics.watermark.image import IMAGE_PAYLOAD_BITS, ImageWatermark, measure_psnr

KEY = b"a key of thirty-two bytes, or so"


def half(image):
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def noise(image):
    rng = np.random.default_rng(3)
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def crop(image, share):
    height, width = image.shape[:2]
    top, left = int(height * share * 0.4), int(width * share * 0.7)
    return image[top : top + round(height * (1 - share)), left : left + round(width * (1 - share))]


@pytest.fixture(scope="module")
def marked():
    mark = ImageWatermark(KEY)
    images = [draw_face(1, number, 224).image for number in range(3)]
    payloads = [0, 2**IMAGE_PAYLOAD_BITS - 1, 0x123456789ABC]
    return [
        (image, mark.embed(image, payload), payload)
        for image, payload in zip(images, payloads, strict=True)
    ]


def test_code_finds_the_message_behind_noise():
    rng = np.random.default_rng(0)
    for _ in range(20):
        bits = rng.integers(0, 2, 72).astype(np.uint8)
        coded = encode_bits(bits)
        assert len(coded) == compute_coded_length(72)
        noisy = coded * 2.0 - 1 + rng.normal(0, 0.7, len(coded))
        assert ((noisy > 0) != (coded > 0)).any()  # there is something to correct
        np.testing.assert_array_equal(decode_soft(noisy), bits)


def test_quality_is_what_was_asked(marked):
    for image, with_mark, _ in marked:
        assert 41.9 <= measure_psnr(image, with_mark) <= 42.6


@pytest.mark.parametrize(
    "attack",
    [
        lambda image: image,
        lambda image: compress_jpeg(image, 50),
        half,
        lambda image: cv2.GaussianBlur(image, (0, 0), 1),
        noise,
        lambda image: np.clip(image.astype(int) + 20, 0, 255).astype(np.uint8),
    ],
    ids=["none", "jpeg-50", "half-size", "blur-1", "noise-8", "brighter"],
)
def test_payload_is_exact_after(attack, marked):
    mark = ImageWatermark(KEY)
    for _, with_mark, payload in marked:
        assert mark.read(np.ascontiguousarray(attack(with_mark))).payload == payload


@pytest.mark.parametrize("share", [0.03, 0.1])
def test_payload_is_exact_after_a_crop(share, marked):
    _, with_mark, payload = marked[2]
    cropped = np.ascontiguousarray(crop(with_mark, share))
    assert ImageWatermark(KEY).read(cropped).payload is None
    found = ImageWatermark(KEY).read(cropped, search=True)
    assert found.payload == payload
    assert np.allclose(found.kept, 1 - share, atol=0.011)


def test_nothing_is_found_in_500_unmarked_images():
    mark = ImageWatermark(KEY)
    rng = np.random.default_rng(5)
    faces = [draw_face(2, number, 128).image for number in range(20)]
    for number in range(500):
        image = np.roll(faces[number % 20], tuple(rng.integers(0, 128, 2)), axis=(0, 1))
        assert mark.read(image).payload is None


def test_nothing_is_found_by_searching_crops_of_unmarked_images():
    mark = ImageWatermark(KEY)
    for number in range(4):
        assert mark.read(draw_face(3, number, 128).image, search=True).payload is None


def test_another_key_reads_nothing(marked):
    other = ImageWatermark(b"another key of thirty-two bytes!")
    assert all(other.read(with_mark).payload is None for _, with_mark, _ in marked)


def test_a_flat_image_carries_a_mark():
    mark = ImageWatermark(KEY)
    gray = np.full((160, 160, 3), 128, dtype=np.uint8)
    assert mark.read(mark.embed(gray, 5)).payload == 5


def test_an_image_that_drowns_every_mark_is_refused():
    rng = np.random.default_rng(0)
    loud = (rng.integers(0, 2, (160, 160, 1)) * 255).astype(np.uint8).repeat(3, axis=2)
    with pytest.raises(DataError) as caught:
        ImageWatermark(KEY).embed(loud, 5, psnr=44)
    assert caught.value.code == "forensics.mark-failed"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda mark: mark.embed(np.zeros((64, 64, 3), np.uint8), 1), "forensics.too-small"),
        (
            lambda mark: mark.embed(np.zeros((128, 128, 3), np.uint8), 2**IMAGE_PAYLOAD_BITS),
            "forensics.payload",
        ),
        (lambda mark: mark.read(np.zeros((128, 128), np.uint8)), "forensics.image"),
        (lambda mark: ImageWatermark(b"short"), "forensics.key"),
    ],
)
def test_what_cannot_be_marked_is_refused(make, code):
    with pytest.raises(DataError) as caught:
        make(ImageWatermark(KEY))
    assert caught.value.code == code


def test_a_reading_says_how_often_chance_could_have_fitted(faces):
    mark = ImageWatermark(KEY)
    assert mark.read(faces[0].image).decodings == 1
    assert mark.read(faces[0].image, search=True).decodings == 9
    assert mark.read(mark.embed(faces[0].image, 5), search=True).decodings == 1
    assert mark.read(np.zeros((8, 8, 3), np.uint8)).decodings == 0
