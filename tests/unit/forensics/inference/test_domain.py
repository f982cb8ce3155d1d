"""A detector knows what it learned from: strangers, leaking sets and other files are not judged."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image
from tests.unit.forensics.conftest import widen

from stillroom.flow import run_recipe
from stillroom.forensics.benchmark.manifest import ManifestItem, read_items, write_items
from stillroom.forensics.inference.domain import (
    FeatureAxes,
    FeatureNeighbors,
    FileTraits,
    TrainingDomain,
    find_distance_limit,
    fit_axes,
    fit_neighbors,
    measure_residuals,
)
from stillroom.forensics.inference.results import TrainingSetInfo
from stillroom.forensics.inference.trained_detector import TrainedDetector, write_detector
from stillroom.forensics.interfaces import AUDIO_FORGERIES, IMAGE_FORGERIES
from stillroom.forensics.media.images import load_image
from stillroom.forensics.media.transforms import preserve_grayscale
from stillroom.forensics.modalities.audio import match_loudness
from stillroom.forensics.modalities.image import ImageModality, is_grayscale, measure_image
from stillroom.forensics.synthesis.faces import draw_face
from stillroom.forensics.synthesis.voices import draw_voice
from stillroom.forensics.training.pairs import forge_pair, open_benchmark_pairs
from stillroom.recipes import parse_recipe

LEARN = """
version: 1
kind: forensics.image_detector
seed: 1
model: {{name: spectral, radii: 8, bands: 4}}
data: {{type: benchmark, manifest: {manifest}, basis: drawn}}
face_size: 128
image_size: 32
augmentation: {{jpeg_probability: {jpeg}}}
train: {{steps: 10, batch_size: 6, threads: 1}}
"""


def gray(image):
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def write_benchmark(folder, number, *, colour_tells):
    """Write pairs of gray faces and their doubled selves; of one size and format but for color."""
    items = []
    folder.mkdir()
    for at in range(number):
        split = ("train", "train", "train", "validation", "test")[at % 5]
        image = draw_face(9, at, 128).image
        fake = np.repeat(np.repeat(image[::2, ::2], 2, axis=0), 2, axis=1)
        for label, pixels in ((0, gray(image)), (1, fake if colour_tells else gray(fake))):
            name = f"{label}-{at}.bmp"  # of one number of bytes
            Image.fromarray(pixels).save(folder / name)
            kept = {"source": str(at), "identity": f"p{at}", "split": split}
            items.append(ManifestItem(name, name, label, "doubled" if label else "", **kept))
    write_items(folder / "manifest.jsonl", items)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = write_benchmark(tmp_path_factory.mktemp("gray") / "plain", 40, colour_tells=False)
    out = folder.parent / "run"
    run_recipe(parse_recipe(LEARN.format(manifest=folder, jpeg=0)), out)
    return out


@pytest.fixture(scope="module")
def leaking(tmp_path_factory):
    folder = write_benchmark(tmp_path_factory.mktemp("mixed") / "mixed", 40, colour_tells=True)
    out = folder.parent / "run"
    run_recipe(parse_recipe(LEARN.format(manifest=folder, jpeg=0)), out)
    return out


def judged(detector, image, **changes):
    about = {"box": (0, 0, 9, 9), "face_pixels": 128, "jpeg_quality": None, "coding": "lossless"}
    return detector.judge(image, **{**about, **changes})


def strange(finding):
    """Return the reasons of a finding that say that it is of something strange."""
    words = ("unlike", "color", "coded as", "detail up to")
    return [line for line in finding.reasons if any(word in line for word in words)]


def test_what_a_detector_knows_is_not_called_strange_and_strangers_are(trained):
    detector = TrainedDetector.open(trained)
    own = [gray(draw_face(10, at, 128).image) for at in range(30)]
    known = [strange(judged(detector, image)) for image in own]
    assert sum(map(bool, known)) <= 6  # people of another seed: none of them set a limit
    rng = np.random.default_rng(0)
    for image in own[:5]:
        noise = np.clip(image + rng.normal(0, 40, (*image.shape[:2], 1)), 0, 255)
        assert any("unlike" in line for line in strange(judged(detector, noise.astype(np.uint8))))
        assert any("unlike" in line for line in strange(judged(detector, np.full_like(image, 120))))


def test_colour_size_and_coding_are_compared(trained):
    detector = TrainedDetector.open(trained)
    image = draw_face(10, 1, 128).image
    finding = judged(detector, image)
    assert finding.chance is None
    assert "in color, but trained on gray images only" in finding.verdict
    assert (
        "coded as WebP, but trained on lossless"
        in judged(detector, gray(image), coding="WebP").verdict
    )
    known = FileTraits(("color",), 100.0, ("JPEG 4:2:0", "lossless"))
    assert known.doubts(colors="color", wide=109, coding="JPEG 4:2:0") == []
    assert known.doubts(colors="gray", wide=200, unit="px", coding="AVIF") == [
        "without color, but trained on color images only",
        "detail up to 200 px, beyond the 100 of its training data",
        "coded as AVIF, but trained on JPEG 4:2:0, lossless",
    ]
    large = judged(detector, gray(image), face_pixels=600)  # scaled down to what the network reads
    assert "detail up to 600 px about a face, beyond the 128 of its training data" in large.verdict
    assert FileTraits().doubts(colors="gray", wide=200, coding="AVIF") == []  # nothing is known


def test_each_verdict_names_the_set_it_learned_from(trained):
    detector = TrainedDetector.open(trained)
    finding = judged(detector, gray(draw_face(10, 1, 128).image))
    learned = finding.to_json()["learned"]
    assert learned["name"] == "plain"
    assert learned["count"] == 40
    assert len(learned["digest"]) == 64
    assert f"(trained on plain, 40 in all, digest {learned['digest'][:12]})" in finding.line()


def test_the_audit_of_the_set_is_written_down(trained, leaking):
    for run, leaks in ((trained, False), (leaking, True)):
        told = json.loads((run / "artifact.json").read_text())["details"]["detector"]
        card = (run / "output/README.md").read_text()
        assert told["audit"]["of"] == "files"
        assert bool(told["audit"]["leak"]) is leaks
        assert told["audit"]["by_file"]["n"] == 40
        assert ("The set leaks" in card) is leaks
        assert "Of the samples of test people they accept" in card
        assert set(told["domain"]["tried"]) >= {"as they are", "still"}


def test_a_leaking_set_is_told_before_any_step_and_its_pairs_count_once(leaking):
    events = (leaking / "events.jsonl").read_text().splitlines()
    leak = next(at for at, line in enumerate(events) if "the training set leaks: " in line)
    learned = next(at for at, line in enumerate(events) if '"train"' in line)
    assert leak < learned
    told = json.loads((leaking / "artifact.json").read_text())["details"]["detector"]
    assert told["calibration"]["n"] == 2 * told["metrics"]["faces"]["validation"]
    card = (leaking / "output/README.md").read_text()
    assert "pairs of a real picture and a given fake of doubled" in card
    assert "on the fly" not in card


def test_real_pictures_without_a_fake_are_counted(tmp_path):
    folder = write_benchmark(tmp_path / "few", 10, colour_tells=False)
    items = [item for item in read_items(folder) if item.id != "1-0.bmp"]
    write_items(folder / "some.jsonl", items)
    said = []
    pairs = open_benchmark_pairs(folder / "some.jsonl", 128, 1.9, said.append)
    assert said == ["1 of 10 real pictures are not used: each fake is paired with one"]
    assert pairs.name == "few/some.jsonl"


def test_a_domain_of_an_earlier_version_is_not_read(trained, tmp_path):
    detector = TrainedDetector.open(trained)
    write_detector(tmp_path, detector.network, detector.metadata)
    config = json.loads((tmp_path / "config.json").read_text())
    config["stillroom_detector"]["version"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    finding = judged(TrainedDetector.open(tmp_path), gray(draw_face(10, 1, 128).image))
    assert "by an earlier version: retrain it" in finding.verdict


def test_a_leaking_set_marks_every_verdict(leaking):
    detector = TrainedDetector.open(leaking)
    about = replace(widen(detector.metadata), audit=detector.metadata.audit, is_validated=True)
    detector.metadata = about
    for image in (draw_face(10, 1, 128).image, gray(draw_face(10, 2, 128).image)):
        finding = judged(detector, image, coding="")
        assert finding.chance is None
        assert "its training set leaks: the file alone tells fake from real" in " ".join(
            finding.reasons
        )
        assert "colors" in finding.verdict


def test_a_detector_without_a_domain_says_nothing(trained, tmp_path):
    detector = TrainedDetector.open(trained)
    nothing = {"domain": None, "audit": {}, "training_set": TrainingSetInfo()}
    write_detector(tmp_path, detector.network, replace(detector.metadata, **nothing))
    finding = judged(TrainedDetector.open(tmp_path), gray(draw_face(10, 1, 128).image))
    assert "its training domain was not stored" in finding.verdict
    assert "an unnamed set" in finding.line()


@pytest.mark.parametrize("name", IMAGE_FORGERIES.names())
def test_a_forgery_of_a_grey_face_is_grey(name, faces):
    plain = [replace(face, image=gray(face.image)) for face in faces]
    for at in range(3):
        rng = np.random.default_rng(at)
        forged = forge_pair(plain, at, [IMAGE_FORGERIES.build(name)], rng)
        for image in (forged.image, forged.twin):
            assert (image[..., :1] == image[..., 1:]).all()
    coloured = IMAGE_FORGERIES.build(name).forge(
        faces[: 1 + (name in {"swap", "splice", "i2g"})] + faces, np.random.default_rng(0)
    )
    assert preserve_grayscale(coloured, faces[0].image) is coloured


def test_loudness_and_offset_do_not_tell_a_forged_sound():
    wave = draw_voice(3, 0, 1.0)
    wave = replace(wave, samples=wave.samples * np.float32(0.5) + np.float32(0.1))
    method = AUDIO_FORGERIES.build("source_filter")
    forged = match_loudness(method.forge([wave], np.random.default_rng(0)))
    size = [float(np.sqrt(np.mean(one**2))) for one in (forged.samples, forged.twin)]
    assert size[0] == pytest.approx(size[1], rel=1e-3)
    assert abs(forged.samples.mean()) < 1e-4
    assert abs(forged.twin.mean()) < 1e-4
    assert max(np.abs(forged.samples).max(), np.abs(forged.twin).max()) <= 1


def test_a_limit_holds_for_people_that_did_not_set_it():
    rng = np.random.default_rng(0)

    def draw(people, each=20):
        own = rng.normal(0, 0.5, people)
        return np.repeat(own, each) + rng.normal(0, 1, people * each), [
            f"p{at}" for at in range(people) for _ in range(each)
        ]

    fresh, _ = draw(500)
    many = np.mean([np.mean(fresh > find_distance_limit(*draw(60), 0.05)) for _ in range(20)])
    few = np.mean([np.mean(fresh > find_distance_limit(*draw(6), 0.05)) for _ in range(20)])
    assert 0.01 < many < 0.05
    assert few < 0.05


def test_a_cloud_finds_what_never_varied_while_learning():
    rng = np.random.default_rng(0)
    given = rng.normal(0, 1, (300, 60))
    given[:, 7] = 0.0
    cloud = fit_neighbors(given)
    again = FeatureNeighbors.from_arrays(cloud.to_arrays())
    other = rng.normal(0, 1, (200, 60))
    other[:, 7] = 0.0
    inside = again.distances(other)
    np.testing.assert_allclose(inside, cloud.distances(other), rtol=1e-3)
    limit = find_distance_limit(inside, [str(at) for at in range(200)], 0.05)
    new = other[:1].copy()
    new[0, 7] = 4.0
    assert cloud.distances(new)[0] > limit
    assert cloud.most_deviating(new[0]) == 7
    assert cloud.distances(np.full((1, 60), np.nan))[0] == np.inf


def test_a_cloud_finds_what_lies_between_the_kinds_it_learned():
    rng = np.random.default_rng(0)
    kinds = rng.normal(0, 1, (1200, 10)) + np.where(np.arange(1200) % 2, -4, 4)[:, None]
    cloud, own = fit_neighbors(kinds[:1000]), kinds[1000:]
    limit = find_distance_limit(cloud.distances(own), [str(at) for at in range(200)], 0.05)
    assert cloud.distances(rng.normal(0, 1, (50, 10))).min() > limit


def test_people_do_not_shield_themselves_when_they_set_a_limit():
    rows = np.repeat(np.random.default_rng(0).normal(0, 1, (50, 4)), 2, axis=0)
    people = np.arange(100) // 2
    cloud = fit_neighbors(rows)
    assert cloud.distances(rows).max() < 1e-6
    alone = cloud.distances(rows, people[:, None] == people)
    assert alone.min() > 1e-3


def test_a_domain_is_stored_and_read_whole():
    rng = np.random.default_rng(0)
    wide = {"features": 8, "looks": 3}
    clouds = {name: fit_neighbors(rng.normal(0, 1, (40, size))) for name, size in wide.items()}
    limits = {"still": {"features": 1.0, "looks": 2.0}}
    domain = TrainingDomain(clouds, ("a", "b", "c"), limits, FileTraits(("gray",)), people=4)
    again = TrainingDomain.from_json(json.loads(json.dumps(domain.to_json())), domain.to_arrays())
    assert again.known == domain.known
    assert again.limit(is_video=True) == limits["still"]
    given = {"features": np.zeros((1, 8)), "looks": np.array([[0.0, 50.0, 0.0]])}
    (said,) = [line for line in again.doubts(given) if "most in" in line]
    assert "most in b" in said
    assert not again.is_within(given).any()
    with pytest.raises(ValueError, match="does not fit"):
        TrainingDomain.from_json(
            domain.to_json(), {**domain.to_arrays(), "looks.spread": np.ones(9, np.float32)}
        )


def test_looks_tell_tone_colour_and_detail_apart(faces):
    image = faces[0].image
    plain = dict(zip(ImageModality.features, measure_image(image), strict=True))
    dark = dict(zip(ImageModality.features, measure_image(image // 2), strict=True))
    soft = dict(
        zip(ImageModality.features, measure_image(cv2.GaussianBlur(image, (0, 0), 2)), strict=True)
    )
    assert dark["brightness"] < plain["brightness"]
    assert soft["detail at a scale of 1"] < plain["detail at a scale of 1"] - 0.5
    assert is_grayscale(gray(image))
    assert not is_grayscale(image)


@pytest.mark.parametrize(
    ("name", "options", "coding"),
    [
        ("a.png", {}, "lossless"),
        ("a.webp", {}, "WebP"),
        ("a.jpg", {"subsampling": "4:2:0", "quality": 34}, "JPEG 4:2:0"),
        ("a.jpg", {"subsampling": "4:2:2"}, "JPEG 4:2:2"),
        ("a.jpg", {"subsampling": "4:4:4"}, "JPEG 4:4:4"),
        ("a.jpg", {"qtables": [[7] * 64, [9] * 64]}, "JPEG 4:2:0, own tables"),
    ],
)
def test_a_picture_says_how_it_is_coded(name, options, coding, tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name, **options)
    assert load_image(tmp_path / name).coding == coding


def test_a_gray_jpeg_and_one_of_cmyk_say_how_they_are_coded(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").coding == "JPEG 4:0:0"
    Image.new("CMYK", (8, 8)).save(tmp_path / "b.jpg")
    assert load_image(tmp_path / "b.jpg").coding == "JPEG other sampling"


def test_a_stranger_is_off_the_axes_along_which_the_training_set_varies():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4, 60))
    shared = rng.normal(size=(160, 4)) @ directions
    known = shared + rng.normal(0, 0.1, shared.shape)
    axes = fit_axes(known[:80])
    limit = axes.distances(known[80:]).max()
    assert (axes.distances(known[80:] + rng.normal(0, 0.5, (80, 60))) > limit).all()
    assert np.median(axes.distances(known[80:] + shared[80:])) < limit  # far along the axes
    restored = FeatureAxes.from_arrays(axes.to_arrays())
    assert np.allclose(restored.distances(known), axes.distances(known), atol=1e-4)
    with pytest.raises(ValueError, match="do not fit"):
        FeatureAxes.from_arrays({**axes.to_arrays(), "mean": np.zeros(3, np.float32)})


def test_people_set_limits_by_axes_that_were_fitted_without_them():
    rows = np.random.default_rng(0).normal(size=(80, 60))
    people = [f"p{at // 4}" for at in range(80)]
    unseen = measure_residuals(rows, people, rows, people)
    assert unseen.mean() > fit_axes(rows).distances(rows).mean()
    assert np.isfinite(measure_residuals(rows[:4], people[:4], rows[:4], people[:4])).all()
