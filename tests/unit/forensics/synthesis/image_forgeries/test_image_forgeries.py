"""Every forgery changes what its mask says and nothing else, and is its seed's alone."""

import numpy as np
import pytest

from stillroom.forensics.interfaces import BENIGN_EDITS, IMAGE_FORGERIES
from stillroom.forensics.media.face_types import MIRRORED, canonical_points
from stillroom.forensics.media.masks import HULL_KINDS, draw_hull, feather, soften
from stillroom.forensics.media.transforms import (
    align_points,
    compress_jpeg,
    find_mask_box,
    transfer_color,
    warp_face,
)
from stillroom.forensics.synthesis.faces import draw_face

VARIANTS = [
    *({"name": name} for name in IMAGE_FORGERIES.names()),
    {"name": "swap", "blending": "poisson"},
    {"name": "swap", "blending": "laplacian", "color_transfer": "transport"},
    {"name": "swap", "resolution": 48, "color_transfer": "mean"},
    {"name": "inpaint", "algorithm": "navier-stokes"},
    {"name": "upsample", "steps": 2},
]
SPREADING = {"poisson": 2, "laplacian": 60}  # what joins by gradients or bands reaches further


@pytest.mark.parametrize("chosen", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_forgery_is_of_its_seed_and_within_its_mask(chosen, faces):
    method = IMAGE_FORGERIES.build(chosen)
    some = faces[: method.num_faces]
    before = [face.image.copy() for face in some]
    one, same = (method.forge(some, np.random.default_rng(3)) for _ in range(2))
    other = method.forge(some, np.random.default_rng(4))
    np.testing.assert_array_equal(one.image, same.image)
    np.testing.assert_array_equal(one.mask, same.mask)
    assert not np.array_equal(one.image, other.image) or chosen["name"] == "swap"
    assert one.image.shape == one.twin.shape == some[0].image.shape
    assert one.image.dtype == np.uint8
    assert one.mask.min() >= 0
    assert 0 < one.mask.max() <= 1
    change = np.abs(one.image.astype(int) - one.twin).max(axis=2)
    most = SPREADING.get(chosen.get("blending", ""), 0)
    assert change[one.mask == 0].max(initial=0) <= most
    assert change[one.mask > 0].max() > 0
    for face, copy in zip(some, before, strict=True):
        np.testing.assert_array_equal(face.image, copy)


def test_sbi_draws_ratios_hulls_and_sides_evenly():
    sbi = IMAGE_FORGERIES.build("sbi")
    faces = [draw_face(7, number, 64) for number in range(6)]  # what is drawn has no size
    made = [
        sbi.forge(faces[number % 6 : number % 6 + 1], np.random.default_rng(number))
        for number in range(240)
    ]
    ratios = [forged.details["ratio"] for forged in made]
    assert 0.35 < ratios.count(1.0) / 240 < 0.65  # three of six
    for ratio in (0.25, 0.5, 0.75):
        assert 0.08 < ratios.count(ratio) / 240 < 0.26
    hulls = [forged.details["hull"] for forged in made]
    assert all(0.15 < hulls.count(kind) / 240 < 0.36 for kind in HULL_KINDS)
    assert 0.38 < [forged.details["changed"] for forged in made].count("source") / 240 < 0.62
    assert all(
        forged.mask.max() == pytest.approx(forged.details["ratio"], abs=1e-5) for forged in made
    )


@pytest.mark.parametrize("name", BENIGN_EDITS.names())
def test_edit_is_of_its_seed(name, faces):
    edit = BENIGN_EDITS.build(name)
    one, same = (edit.edit(faces[0], np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert one.shape == faces[0].image.shape
    assert not np.array_equal(one, faces[0].image)
    error = np.abs(one.astype(int) - faces[0].image).mean()
    assert error < 45  # an edit, not another picture


@pytest.mark.parametrize("kind", HULL_KINDS)
def test_hull_covers_the_face_and_no_more(kind, faces):
    points = faces[0].landmarks
    mask = draw_hull(points, (160, 160), kind)
    low, high = points.min(axis=0), points.max(axis=0)
    x, y, width, height = find_mask_box(mask)
    assert x >= low[0] - 2
    assert x + width <= high[0] + 2
    assert y + height <= high[1] + 3
    assert 0.04 < mask.mean() < 0.5


def test_soft_masks_of_tiny_and_empty_hulls():
    dot = np.zeros((160, 160), dtype=np.float32)
    assert soften(dot, np.random.default_rng(0)).max() == 0
    dot[80, 80] = 1
    for seed in range(10):
        assert soften(dot, np.random.default_rng(seed)).max() == pytest.approx(1)
    assert feather(np.ones((20, 20), dtype=np.float32), 0.2).max() == 1
    assert feather(np.zeros((20, 20), dtype=np.float32), 0.2).max() == 0


def test_mirrored_landmarks_come_back():
    np.testing.assert_array_equal(MIRRORED[MIRRORED], np.arange(68))
    points = canonical_points()
    np.testing.assert_allclose(points[MIRRORED] * [-1, 1], points, atol=1e-5)


def test_alignment_is_exact_for_a_similarity():
    points = canonical_points()
    turn = 1.7 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    matrix = align_points(points, points @ turn.T + [5, -3])
    np.testing.assert_allclose(matrix, np.column_stack([turn, [5, -3]]), atol=1e-4)


def test_a_face_warped_onto_itself_stays(faces):
    moved = warp_face(faces[0], faces[0])
    assert np.abs(moved.astype(int) - faces[0].image).mean() < 0.5


def test_warping_brings_landmarks_to_their_place(faces):
    from dataclasses import replace

    marked = faces[1].image.copy() // 4
    at = np.rint(faces[1].landmarks[[30, 48, 54]]).astype(int)
    for x, y in at:
        marked[y - 1 : y + 2, x - 1 : x + 2] = 255
    moved = warp_face(replace(faces[1], image=marked), faces[0])
    for x, y in np.rint(faces[0].landmarks[[30, 48, 54]]).astype(int):
        assert moved[y - 2 : y + 3, x - 2 : x + 3].max() > 150


def test_a_source_of_another_size_is_reflected_at_its_border_and_not_black(faces):
    from dataclasses import replace

    cut = replace(faces[1], image=np.full_like(faces[1].image[:130, :130], 200))
    assert warp_face(cut, faces[0], piecewise=False).min() == 200
    assert warp_face(cut, faces[0]).min() == 200


@pytest.mark.parametrize("how", ["mean", "reinhard", "transport"])
def test_colours_become_the_targets(how, faces):
    mask = draw_hull(faces[0].landmarks, (160, 160), "inner")
    inside = mask > 0.5
    moved = transfer_color(faces[1].image, faces[0].image, mask, how)
    gap = np.abs(moved[inside].mean(axis=0) - faces[0].image[inside].mean(axis=0)).max()
    start = np.abs(faces[1].image[inside].mean(axis=0) - faces[0].image[inside].mean(axis=0)).max()
    assert gap < max(0.25 * start, 4)
    np.testing.assert_array_equal(
        transfer_color(faces[1].image, faces[0].image, mask, "none"), faces[1].image
    )


def test_the_upsampled_picture_has_a_grid_in_its_spectrum(faces):
    forged = IMAGE_FORGERIES.build({"name": "upsample", "roughness": 0.5}).forge(
        faces[:1], np.random.default_rng(0)
    )

    def corner(image):
        gray = image.astype(float).mean(axis=2)
        size = np.abs(np.fft.fft2(gray - gray.mean()))
        return size[76:84, 76:84].max() / np.median(size)

    assert corner(forged.image) > 3 * corner(forged.twin)


def test_jpeg_keeps_shape_and_colour_order():
    red = np.zeros((32, 32, 3), dtype=np.uint8)
    red[..., 0] = 200
    out = compress_jpeg(red, 90)
    assert out[..., 0].mean() > 150
    assert out[..., 2].mean() < 30
