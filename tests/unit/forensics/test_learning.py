"""A detector is learned, resumed to the same bytes, opened, and asked about a picture."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from stillroom.cli.app import stillroom
from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.flow import run_recipe
from stillroom.forensics.calibrating import Calibrator
from stillroom.forensics.detecting import TrainedDetector
from stillroom.forensics.explaining import draw_maps, pointing_game
from stillroom.forensics.pairs import PairSource
from stillroom.forensics.proving import Trial, make_trial
from stillroom.forensics.method import FORGERIES
from stillroom.recipes import parse_recipe

RECIPE = """
version: 1
kind: forensics
seed: 3
method: {name: upsample, roughness: 1.0}
count: 14
size: 128
split: {held_out: 0.3, validation: 0.3}
detector:
  model: {name: npr, width: 8}
  pixels: 32
  train: {steps: 4, batch_size: 3, threads: 1, save_every_s: 0, learning_rate: 0.01}
"""


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
    assert "Where it is blind" in card
    assert "of photographs its scores say nothing" in card
    figures = detector.about.figures
    assert set(figures["auc"]) == {"clean", "jpeg70", "jpeg40", "half", "noise8", "blur"}
    people = figures["faces"]
    assert sum(people.values()) == 14
    assert min(people.values()) > 0


def test_a_killed_run_goes_on_to_the_same_bytes(trained, tmp_path, monkeypatch):
    load, calls = PairSource.load, []

    def dies(self, group):
        calls.append(group)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return load(self, group)

    monkeypatch.setattr(PairSource, "load", dies)
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
    about = detector.about
    shown = vars(about) | {
        "is_shown": True, "least_face": 90, "least_quality": 50,
        "calibrator": Calibrator("platt", 1e-6, 2.0),
    }
    detector.about = type(about)(**shown)
    image = faces[0].image
    sure = judged(detector, image)
    assert sure.chance == pytest.approx(0.88, abs=0.01)
    assert sure.verdict.startswith("indicates a forgery (chance 0.88 where 0.5 of")
    rare = judged(detector, image, prevalence=0.001)
    assert rare.verdict.startswith("does not indicate")
    small = judged(detector, image, face_pixels=50, jpeg_quality=30)
    assert small.chance is None
    assert small.verdict == (
        "inconclusive: face of 26 px, below the 47 px it was shown to work on; "
        "JPEG quality 30, below the 50 it was shown to work on"
    )
    detector.about = type(about)(**{**shown, "is_shown": False})
    assert "not shown to tell" in judged(detector, image).verdict


def test_findings_stand_beside_the_verdict(trained, tmp_path):
    from stillroom.forensics.drawing import draw_face

    Image.fromarray(draw_face(7, 1, 256).image).save(tmp_path / "a.png")
    words = ["forensics", "check", str(tmp_path / "a.png"), "--detector", str(trained)]
    page = tmp_path / "page.html"
    done = CliRunner().invoke(stillroom, [*words, "--json", "--maps", "--html", str(page)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (finding,) = found["files"][0]["detectors"]
    assert found["files"][0]["verdict"].startswith("nothing is known of its origin")
    assert finding["detector"] == "npr of upsample"
    assert finding["verdict"].startswith(("inconclusive", "indicates", "does not indicate"))
    assert any("npr of upsample: It reads the grid" in line for line in found["limits"])
    assert "npr of upsample" in page.read_text()


def test_train_command_tells_figures_and_blindness(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.replace("npr, width: 8", "spectral"))
    words = ["forensics", "train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(stillroom, [*words, "--quiet"])
    assert done.exit_code == 0, done.output
    assert "area under the curve, clean" in done.output
    assert "blind    It sees the spectrum" in done.output
    plain = RECIPE.split("detector:")[0]
    (tmp_path / "r.yaml").write_text(plain)
    done = CliRunner().invoke(stillroom, words)
    assert done.exit_code == 2
    assert "the recipe learns no detector" in done.output


def test_maps_find_what_a_detector_was_told(trained, faces):
    detector = TrainedDetector.open(trained)
    maps = draw_maps(detector, [face.image for face in faces[:2]])
    assert maps.shape == (2, 32, 32)
    assert maps.min() >= 0
    assert maps.max() <= 1
    trial = make_trial(faces[:3], [FORGERIES.build("sbi")], seed=1)
    played = pointing_game(detector, trial)
    assert 0 < played.chance < 1
    everywhere = Trial(
        trial.images, trial.labels, tuple(np.ones_like(mask) for mask in trial.masks), trial.groups
    )
    assert pointing_game(detector, everywhere).hits == 1.0


def test_bad_recipes_and_folders_are_refused(trained, tmp_path):
    with pytest.raises(CheckpointError, match="config.json does not say so"):
        config = json.loads((trained / "output/config.json").read_text())
        del config["stillroom_detector"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        weights = (trained / "output/model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(weights)
        TrainedDetector.open(tmp_path)
    with pytest.raises(CheckpointError, match="another network"):
        config = json.loads((trained / "output/config.json").read_text())
        config["stillroom_detector"]["method"] = {"name": "spectral"}
        (tmp_path / "config.json").write_text(json.dumps(config))
        TrainedDetector.open(tmp_path)
    with pytest.raises(DataError, match="none is left for"):
        run_recipe(parse_recipe(RECIPE.replace("count: 14", "count: 2")), tmp_path / "few")
    with pytest.raises(RecipeError, match="faces.basis is for detectors"):
        text = RECIPE.split("detector:")[0] + "faces: {folder: x, basis: a license}\n"
        parse_recipe(text)
