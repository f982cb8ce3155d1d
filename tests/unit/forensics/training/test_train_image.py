"""A detector is learned, resumed to the same bytes, opened, and asked about a picture."""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.unit.forensics.conftest import widen

from stillroom.cli.app import stillroom
from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.flow import run_recipe
from stillroom.forensics.inference.detector_set import compute_heatmaps
from stillroom.forensics.inference.results import Calibrator
from stillroom.forensics.inference.trained_detector import (
    DetectorMetadata,
    TrainedDetector,
    write_detector,
)
from stillroom.forensics.interfaces import IMAGE_DETECTORS, IMAGE_FORGERIES
from stillroom.forensics.modalities.image import ImageModality
from stillroom.forensics.networks.interfaces import DetectorOutput, TwoStreamNetwork
from stillroom.forensics.training.pairs import PairDataset
from stillroom.forensics.training.train_image import make_validation_set
from stillroom.forensics.training.validation import LabeledSamples
from stillroom.recipes import parse_recipe

RECIPE = """
version: 1
kind: forensics.image_detector
seed: 3
model: {name: npr, width: 8}
data:
  type: forgeries
  forgeries: [{name: upsample, roughness: 1.0}]
  count: 14
  split: {test: 0.3, validation: 0.3}
face_size: 128
image_size: 32
train: {steps: 4, batch_size: 3, threads: 1, save_every_s: 0, learning_rate: 0.01}
"""


@pytest.fixture(scope="module")
def game():
    """Return the benchmark that compares maps with masks."""
    path = Path(__file__).resolve().parents[4] / "benchmarks/forensics/pointing_game.py"
    spec = importlib.util.spec_from_file_location("pointing_game", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pointing_game"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("detector") / "run"
    run_recipe(parse_recipe(RECIPE), out)
    return out


def test_what_it_leaves_is_a_checkpoint_with_a_card(trained):
    detector = TrainedDetector.open(trained)
    assert detector.name == "npr of upsample"
    assert len(detector.fingerprint) == 64
    card = (trained / "output" / "README.md").read_text()
    assert "Limitations" in card
    assert "its scores are not valid for photographs" in card
    figures = detector.metadata.metrics
    assert set(figures["auc"]) == {*("clean", "jpeg70", "jpeg40", "half", "noise8", "blur", "h264")}
    people = figures["faces"]
    assert sum(people.values()) == 14
    assert min(people.values()) > 0


def test_a_killed_run_goes_on_to_the_same_bytes(trained, tmp_path, monkeypatch):
    load, calls = PairDataset.load, []

    def dies(self, group):
        calls.append(group)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return load(self, group)

    monkeypatch.setattr(PairDataset, "load", dies)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(parse_recipe(RECIPE), tmp_path / "run")
    run_recipe(parse_recipe(RECIPE), tmp_path / "run", resume=True)
    assert len(calls) == 5  # four steps, one of them begun twice
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "run/output" / name).read_bytes() == (
            trained / "output" / name
        ).read_bytes()


def test_one_batch_is_judged_as_its_parts(trained, faces):
    detector = TrainedDetector.open(trained)
    images = [face.image for face in faces]
    whole = detector.logits(images)
    parts = np.concatenate([detector.logits([image]) for image in images])
    np.testing.assert_allclose(whole, parts, atol=1e-4)


def judged(detector, image, **changes):
    about = {"box": (0, 0, 9, 9), "face_pixels": 1e4, "jpeg_quality": None}
    return detector.judge(image, **{**about, **changes})


def test_a_judgement_is_withheld_where_it_was_not_shown_to_hold(trained, faces):
    detector = TrainedDetector.open(trained)
    about = widen(detector.metadata)
    shown = vars(about) | {
        "is_validated": True,
        "source": "person",
        "modality": replace(about.modality, min_face_size=90, min_jpeg_quality=50),
        "calibrator": Calibrator("platt", 1e-6, 2.0),
    }
    detector.metadata = type(about)(**shown)
    image = faces[0].image
    sure = judged(detector, image)
    assert sure.chance == pytest.approx(0.88, abs=0.01)
    assert sure.verdict.startswith("indicates a forgery (chance 0.88 where 0.5 of")
    rare = judged(detector, image, prevalence=0.001)
    assert rare.verdict.startswith("does not indicate")
    detector.metadata = type(about)(**shown | {"source": "drawn"})
    said = "inconclusive: it was trained on drawn faces only, which do not represent others"
    assert judged(detector, image).verdict == said
    detector.metadata = type(about)(**shown)
    small = judged(detector, image, face_pixels=50, jpeg_quality=30)
    assert small.chance is None
    assert small.verdict == (
        "inconclusive: face of 26 px, below the 47 px it was validated for; "
        "JPEG quality 30, below the 50 it was validated for"
    )
    detector.metadata = type(about)(**{**shown, "is_validated": False})
    assert "not validated to separate" in judged(detector, image).verdict


def test_figures_are_of_the_weights_they_were_measured_with(trained, tmp_path):
    detector = TrainedDetector.open(trained, device="cpu")
    about = replace(detector.metadata, is_validated=True)
    (tmp_path / "a").mkdir()
    write_detector(tmp_path / "a", detector.network, about)
    assert TrainedDetector.open(tmp_path / "a").metadata.is_validated
    with torch.no_grad():
        detector.network.body.head.bias.add_(1)
    (tmp_path / "b").mkdir()
    write_detector(tmp_path / "b", detector.network, about)
    other = (tmp_path / "a/config.json").read_bytes()
    (tmp_path / "b/config.json").write_bytes(other)  # as a merge keeps the first one's config
    assert not TrainedDetector.open(tmp_path / "b").metadata.is_validated


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("input", "image_size"), None),
        (("input", "image_size"), 10**400),
        (("input", "face_size"), 0),
        (("input", "min_face_size"), "x"),
        (("input", "min_jpeg_quality"), []),
        (("calibration",), {"method": "isotonic"}),
        (("calibration", "slope"), float("nan")),
        (("calibration", "prevalence"), 1),
        (("calibration", "n"), -1),
        (("trained_on",), [0]),
        (("training_set", "count"), "many"),
        (("domain", "limits"), None),
        (("domain", "limits"), {}),
        (("domain", "people"), float("inf")),
    ],
)
def test_a_tampered_detector_is_refused(trained, tmp_path, place, value):
    folder = shutil.copytree(trained / "output", tmp_path / "detector")
    config = json.loads((folder / "config.json").read_bytes())
    part = config["stillroom_detector"]
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        TrainedDetector.open(folder, device="cpu")
    assert caught.value.code == "forensics.no-detector"


@pytest.mark.parametrize("name", ["domain.looks.rows", "body.head.bias"])
def test_a_detector_with_a_tampered_tensor_is_refused(trained, tmp_path, name):
    folder = shutil.copytree(trained / "output", tmp_path / "detector")
    tensors = load_file(folder / "model.safetensors")
    value = tensors[name]
    others = [value[:0], value[None]]
    others += [value * float("nan")] if name == "body.head.bias" else []
    for other in others:
        save_file({**tensors, name: other.contiguous()}, folder / "model.safetensors")
        with pytest.raises(CheckpointError) as caught:
            TrainedDetector.open(folder, device="cpu")
        assert caught.value.code == "forensics.no-detector"


def test_findings_stand_beside_the_verdict(trained, tmp_path):
    from stillroom.forensics.synthesis.faces import draw_face

    Image.fromarray(draw_face(7, 1, 256).image).save(tmp_path / "a.png")
    words = ["forensics", "check", str(tmp_path / "a.png"), "--detector", str(trained)]
    page = tmp_path / "page.html"
    done = CliRunner().invoke(stillroom, [*words, "--json", "--maps", "--html", str(page)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (finding,) = found["files"][0]["detectors"]
    assert found["files"][0]["verdict"].startswith("its origin is unknown")
    assert finding["detector"] == "npr of upsample"
    assert finding["verdict"].startswith(("inconclusive", "indicates", "does not indicate"))
    assert any("npr of upsample: It reads the grid" in line for line in found["limits"])
    assert "npr of upsample" in page.read_text()


def test_run_tells_figures_and_blindness_of_a_detector(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.replace("npr, width: 8", "spectral"))
    words = ["run", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(stillroom, [*words, "--quiet"])
    assert done.exit_code == 0, done.output
    assert "area under the curve, clean" in done.output
    assert "limits   It sees the spectrum" in done.output


def test_maps_find_what_a_detector_was_told(trained, faces, game):
    detector = TrainedDetector.open(trained)
    maps = compute_heatmaps(detector, [face.image for face in faces[:2]])
    assert maps.shape == (2, 32, 32)
    assert maps.min() >= 0
    assert maps.max() <= 1
    trial = make_validation_set(faces[:3], [IMAGE_FORGERIES.build("sbi")], seed=1)
    played = game.run_pointing_game(detector, trial)
    assert 0 < played.chance < 1
    assert played.middle == 1.0  # faces lie in the middle: to point there is no art
    everywhere = LabeledSamples(
        trial.samples, trial.labels, tuple(np.ones_like(mask) for mask in trial.masks), trial.groups
    )
    assert game.run_pointing_game(detector, everywhere).hits == 1.0


class _Coarse(torch.nn.Module):
    """A network of 3 x 3 places of 48 pixels that finds brightness forged."""

    def forward(self, given):
        grid = torch.nn.functional.avg_pool2d(given[:, :1].clamp(min=0), 16)
        return DetectorOutput(grid.sum((1, 2, 3)), grid.mean((2, 3)), grid)


def find_spot(network, at, size):
    """Return how far the map's highest place lies from a bright spot at row and column ``at``."""
    network.register_parameter("none", torch.nn.Parameter(torch.zeros(1)))
    method = IMAGE_DETECTORS.build({"name": "cnn", "weights": "none"})
    about = DetectorMetadata(method, ImageModality(size, size, 1.5), Calibrator("none"))
    image = np.zeros((size, size, 3), np.uint8)
    image[at[0] - 2 : at[0] + 3, at[1] - 2 : at[1] + 3] = 255
    found = compute_heatmaps(TrainedDetector(network, about), [image])[0]
    highest = np.argwhere(found >= found.max() - 1e-6).mean(axis=0)
    return float(np.abs(highest - at).max())


@pytest.mark.parametrize("at", [(15, 33), (33, 24), (12, 12)])
def test_maps_of_three_sizes_lie_nearer_than_those_of_one(at):
    assert find_spot(TwoStreamNetwork(_Coarse()), at, 48) < 4.5
    one_size = TwoStreamNetwork(
        _Coarse(), front_end=torch.nn.Identity()
    )  # behind a front end on pixels
    assert find_spot(one_size, at, 48) > find_spot(TwoStreamNetwork(_Coarse()), at, 48)


def test_a_network_with_weights_drawn_anew_still_tells_pictures_apart(game):
    network = IMAGE_DETECTORS.build({"name": "cnn", "weights": "none"}).build(64)
    rng = np.random.default_rng(0)
    planes = torch.from_numpy(rng.random((4, 3, 64, 64), dtype=np.float32))
    drawn = game.reestimate_batch_norm(game.randomize_weights(network, 1), planes)
    with torch.inference_mode():
        assert drawn(planes).std() > 1e-3


def changed(trained, folder, change):
    """Copy a detector's weights, and its config after a change."""
    config = json.loads((trained / "output/config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    weights = (trained / "output/model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_what_is_no_detector_is_refused(trained, tmp_path):
    changed(trained, tmp_path, lambda config: config.pop("stillroom_detector"))
    with pytest.raises(CheckpointError, match=r"config\.json has no detector metadata") as caught:
        TrainedDetector.open(tmp_path)
    assert caught.value.code == "forensics.no-detector"
    changed(trained, tmp_path, lambda config: config["stillroom_detector"].pop("input"))
    with pytest.raises(CheckpointError, match="metadata is damaged"):
        TrainedDetector.open(tmp_path)
    other = {"name": "spectral"}
    changed(trained, tmp_path, lambda config: config["stillroom_detector"].update(method=other))
    with pytest.raises(CheckpointError, match="do not match its network"):
        TrainedDetector.open(tmp_path)


def test_recipes_that_cannot_be_learned_are_refused(trained, tmp_path):
    with pytest.raises(DataError, match="none remains for") as caught:
        run_recipe(parse_recipe(RECIPE.replace("count: 14", "count: 2")), tmp_path / "few")
    assert caught.value.code == "forensics.too-few-faces"
    other = RECIPE.replace("npr, width: 8", "spectral") + f"initial_weights: {trained}\n"
    with pytest.raises(DataError, match=r"initial_weights is a npr") as caught:
        run_recipe(parse_recipe(other), tmp_path / "other")
    assert caught.value.code == "forensics.other-detector"
    text = "kind: forensics.image_set\nfaces: {type: licensed, folder: x, basis: a license}\n"
    with pytest.raises(RecipeError, match="basis is for detector training") as caught:
        parse_recipe(text)
    assert caught.value.code == "forensics.whose-faces"


def test_a_detector_without_places_has_no_maps(tmp_path, faces):
    method = IMAGE_DETECTORS.build("spectral")
    about = DetectorMetadata(method, ImageModality(32, 160, 1.9), Calibrator("none"))
    with pytest.raises(DataError, match="no spatial features") as caught:
        compute_heatmaps(TrainedDetector(method.build(32), about), [faces[0].image])
    assert caught.value.code == "forensics.no-map"


def test_a_student_learns_its_teachers_scores(trained, tmp_path):
    text = RECIPE.replace("npr, width: 8", "spectral") + f"teacher: {{checkpoint: {trained}}}\n"
    run_recipe(parse_recipe(text), tmp_path / "student")
    artifact = json.loads((tmp_path / "student/artifact.json").read_text())
    assert [parent["role"] for parent in artifact["parents"]] == ["teacher"]
    lines = (tmp_path / "student/metrics.jsonl").read_text().splitlines()
    assert any(json.loads(line)["name"] == "teacher" for line in lines)


@pytest.mark.parametrize("more", ["benign_edits: [retouch]", "output: {}", "workers: 2"])
def test_what_is_of_files_is_no_setting_where_none_is_written(more):
    with pytest.raises(RecipeError, match="is not a setting") as caught:
        parse_recipe(f"kind: forensics.image_detector\nmodel: npr\n{more}\n")
    assert caught.value.code == "recipe.unknown-key"
