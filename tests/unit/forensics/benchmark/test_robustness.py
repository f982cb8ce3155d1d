"""The robustness suite: both classes treated alike, by the same lot, and curves that say so."""

import cv2
import numpy as np
import pytest
from PIL import Image

from stillroom.errors import DataError
from stillroom.forensics.benchmark.manifest import ManifestItem, write_items
from stillroom.forensics.benchmark.robustness import (
    STRENGTHS,
    TREATMENTS,
    RobustnessRow,
    apply_treatment,
    measure_curves,
    measure_robustness,
    score_treatments,
)
from stillroom.forensics.synthesis.faces import draw_face
from stillroom.forensics.watermark.image import measure_psnr


@pytest.fixture(scope="module")
def image():
    return draw_face(1, 0, 128).image


@pytest.mark.parametrize("name", TREATMENTS)
def test_every_strength_takes_more(name, image):
    before, seen = image.copy(), []
    for strength in STRENGTHS:
        one = apply_treatment(image, name, strength, "a")
        np.testing.assert_array_equal(one, apply_treatment(image, name, strength, "a"))
        assert one.dtype == np.uint8
        same_size = np.asarray(Image.fromarray(one).resize((128, 128)))
        seen.append(measure_psnr(image, same_size))
    np.testing.assert_array_equal(image, before)
    assert min(seen) > 8  # still the picture
    if name not in {"color", "screenshot", "crop"}:  # by lot up or down, or by place
        assert seen == sorted(seen, reverse=True)


def test_what_is_drawn_by_lot_follows_the_source_not_the_class(image):
    np.testing.assert_array_equal(
        apply_treatment(image, "noise", 3, "clip"), apply_treatment(image, "noise", 3, "clip")
    )
    assert not np.array_equal(
        apply_treatment(image, "noise", 3, "clip"), apply_treatment(image, "noise", 3, "other")
    )
    assert not np.array_equal(
        apply_treatment(image, "noise", 3, "clip"),
        apply_treatment(image, "noise", 3, "clip", seed=1),
    )


def test_both_classes_go_through_the_same(image):
    items = [ManifestItem("r", "r", 0, source="s"), ManifestItem("f", "f", 1, source="s")]
    rows = list(
        score_treatments(items, lambda item: image, lambda images: [i.mean() for i in images])
    )
    assert len(rows) == 2 * (1 + len(TREATMENTS) * len(STRENGTHS))
    by_class = [
        [(row.treatment, row.strength, row.score) for row in rows if row.label == label]
        for label in (0, 1)
    ]
    assert by_class[0] == by_class[1]  # one picture, two labels: nothing tells them apart
    assert all(
        point.auc.value == 0.5 for curve in measure_curves(rows, 100) for point in curve.points
    )


def test_flips_are_verdicts_that_a_treatment_alone_turned():
    rows = []
    for number in range(10):
        for label in (0, 1):
            rows.append(
                RobustnessRow(f"{label}{number}", label, str(number), "none", 0, float(label))
            )
            score = float(label) if number < 7 or not label else 0.0
            rows.append(RobustnessRow(f"{label}{number}", label, str(number), "blur", 5, score))
    (curve,) = measure_curves(rows, 0.5, resamples=50)
    assert [point.auc.value for point in curve.points] == [1.0, 0.85]
    assert (curve.points[1].real_flips, curve.points[1].fake_flips) == (0.0, 0.3)
    assert "30% of fake" in curve.line()


@pytest.mark.parametrize(
    "ask",
    [
        lambda items, load: list(score_treatments(items[:1], load, len)),
        lambda items, load: list(score_treatments(items, load, len, treatments=["fog"])),
        lambda items, load: list(score_treatments(items, load, lambda images: [])),
    ],
    ids=["one-class", "unknown", "no-scores"],
)
def test_what_cannot_be_measured_is_refused(ask, image):
    items = [ManifestItem("r", "r", 0), ManifestItem("f", "f", 1)]
    with pytest.raises(DataError) as caught:
        ask(items, lambda item: image)
    assert caught.value.code == "forensics.stress"


def test_curves_of_ones_own_detector(tmp_path):
    rng, items = np.random.default_rng(0), []
    for number in range(8):
        face = draw_face(2, number, 64).image
        for label in (0, 1):
            noisy = np.clip(face + label * rng.normal(0, 6, face.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / f"{label}{number}.png")
            name = f"{label}{number}"
            items.append(ManifestItem(name, f"{name}.png", label, source=str(number)))
    write_items(tmp_path / "m.jsonl", items)

    def score(images):
        return [float(abs(cv2.Laplacian(image, cv2.CV_32F)).mean()) for image in images]

    found = measure_robustness(tmp_path / "m.jsonl", score, treatments=["blur"], split="")
    assert "chosen on the tested files as they are" in found.lines()[0]
    assert found.lines()[1].startswith("blur: auc ")
    (line,) = found.curves[0].chart().series
    assert [x for x, _ in line.points] == [0, 1, 2, 3, 4, 5]
    for scores in (lambda images: [0.0], lambda images: [-score(images)[0]]):
        with pytest.raises(DataError, match="no better than chance") as caught:
            measure_robustness(tmp_path / "m.jsonl", scores, treatments=["blur"], split="")
        assert caught.value.code == "forensics.stress"
