"""A detector is learned from a benchmark's own fakes, stressed by its folder, and attacked."""

import dataclasses
import json
from typing import get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from stillroom.cli.app import stillroom
from stillroom.errors import DataError, RecipeError
from stillroom.flow import estimate_recipe, run_recipe
from stillroom.forensics.benchmark.adversarial import attack_manifest, attack_planes
from stillroom.forensics.benchmark.manifest import ManifestItem, read_items, write_items
from stillroom.forensics.benchmark.robustness import TREATMENTS
from stillroom.forensics.inference.trained_detector import TrainedDetector
from stillroom.forensics.jobs.benchmark import TreatmentName
from stillroom.forensics.settings import EotJpegAttack, FgsmAttack, PgdAttack, SquareAttack
from stillroom.forensics.synthesis.faces import draw_face
from stillroom.recipes import parse_recipe

LEARN = """
version: 1
kind: forensics.image_detector
seed: 1
model: {{name: npr, width: 8}}
data: {{type: benchmark, manifest: {manifest}, basis: drawn}}
face_size: 128
image_size: 32
augmentation: {{jpeg_probability: 0, color_jitter: 0}}
train: {{steps: 20, batch_size: 6, threads: 1, learning_rate: 0.01}}
"""


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """A set whose fakes have a grid: what npr sees."""
    folder, items = tmp_path_factory.mktemp("benchmark"), []
    for number in range(15):
        split = ("train", "train", "train", "validation", "test")[number % 5]
        image = draw_face(8, number, 128).image
        fake = image.copy()
        fake[::2, ::2] = np.clip(fake[::2, ::2].astype(int) + 24, 0, 255).astype(np.uint8)
        for label, pixels in ((0, image), (1, fake)):
            name = f"{label}-{number}.png"
            Image.fromarray(pixels).save(folder / name)
            generator = "grid" if label else ""
            kept = {"source": str(number), "identity": f"p{number}", "split": split}
            items.append(ManifestItem(name, name, label, generator, **kept))
    write_items(folder / "manifest.jsonl", items)
    return folder


@pytest.fixture(scope="module")
def trained(benchmark):
    out = benchmark.parent / f"{benchmark.name}-detector"
    run_recipe(parse_recipe(LEARN.format(manifest=benchmark)), out)
    return out


def test_a_detector_learns_from_fakes_that_a_benchmark_has(trained):
    detector = TrainedDetector.open(trained)
    assert detector.name == "npr of grid"
    assert detector.metadata.metrics["faces"] == {"train": 9, "validation": 3, "test": 3}
    assert detector.metadata.metrics["auc"]["clean"]["value"] > 0.7
    artifact = json.loads((trained / "artifact.json").read_text())
    assert [parent["role"] for parent in artifact["parents"]] == ["benchmark"]
    assert "a benchmark's, drawn" in (trained / "output/README.md").read_text()


def leaking(benchmark, folder, change):
    """Write the manifest anew after a change to its rows, and return what learning from it says."""
    items = [change(item) for item in read_items(benchmark)]
    write_items(folder / "m.jsonl", items)
    for item in items:
        (folder / item.path).write_bytes((benchmark / item.path).read_bytes())
    with pytest.raises(DataError) as caught:
        run_recipe(parse_recipe(LEARN.format(manifest=folder / "m.jsonl")), folder / "run")
    assert caught.value.code == "forensics.leak"
    return str(caught.value)


@pytest.mark.parametrize("shared", ["source", "identity", "others"])
def test_a_fake_and_its_twin_or_person_are_in_one_split(shared, benchmark, tmp_path):
    def move(item):
        """Put the twin of a fake to learn from among the test's."""
        if item.id != "0-0.png":
            return item
        kept = {"source": {"source": "0"}, "identity": {"identity": "p0"}}
        other = {"source": "x", "identity": "px", "split": "test"}
        kept["others"] = {"others": ("p0",)}
        return dataclasses.replace(item, **{**other, **kept[shared]})

    said = leaking(benchmark, tmp_path, move)
    assert ("source 0" if shared == "source" else "identity p0") in said
    assert "in test and train" in said


def test_a_picture_that_is_in_two_splits_is_found_without_any_name(benchmark, tmp_path):
    def forget(item):
        path = "0-4.png" if item.id == "0-0.png" else item.path
        return dataclasses.replace(item, source="", identity="", path=path)

    assert "(train) and 0-4.png (test) is the same" in leaking(benchmark, tmp_path, forget)


@pytest.mark.parametrize(
    "more", ["forgeries: [swap]", "split: {test: 0.5}", "faces: {type: drawn}", "count: 3"]
)
def test_what_a_benchmark_decides_is_not_set_besides(more):
    text = LEARN.format(manifest="m.csv").replace("basis: drawn", f"basis: drawn, {more}")
    with pytest.raises(RecipeError, match="is not a setting") as caught:
        parse_recipe(text)
    assert caught.value.code == "recipe.unknown-key"


def test_a_manifest_without_splits_is_refused(benchmark, tmp_path):
    Image.open(benchmark / "0-0.png").save(tmp_path / "a.png")
    write_items(
        tmp_path / "m.jsonl", [ManifestItem("a", "a.png", 0), ManifestItem("b", "a.png", 1)]
    )
    with pytest.raises(DataError, match="no pair of real and fake for train") as caught:
        run_recipe(parse_recipe(LEARN.format(manifest=tmp_path / "m.jsonl")), tmp_path / "run")
    assert caught.value.code == "forensics.too-few-faces"


def test_a_trained_detector_is_stressed_by_its_folder(benchmark, trained, tmp_path):
    text = f"kind: forensics.benchmark\nmanifest: {benchmark}\nmeasurement: {{type: robustness, "
    recipe = parse_recipe(f"{text}detector: {trained}, treatments: [blur, h264]}}\n")
    run_recipe(recipe, tmp_path / "run")
    report = json.loads((tmp_path / "run/output/report.json").read_text())
    assert [len(section.get("curves", [])) for section in report["sections"]] == [0, 2]
    page = (tmp_path / "run/output/report.html").read_text()
    assert "chosen on the validation split" in page
    assert "blur: auc " in page
    assert "h264: auc " in page
    assert page.count('<path class="line s0"') == 4  # the line of each curve, and its key
    assert len(TREATMENTS) == 11


ATTACKS = (FgsmAttack(), PgdAttack(steps=6), SquareAttack(queries=30), EotJpegAttack(steps=6))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attacks_stay_within_their_bound_and_lower_the_score(attack, benchmark, trained):
    detector = TrainedDetector.open(trained, device="cpu")
    image = np.asarray(Image.open(benchmark / "1-4.png"))
    plain = torch.from_numpy(detector.image_input.prepare([image]))
    changed = attack_planes(detector, plain, attack, 4 / 255, seed=3)
    again = attack_planes(detector, plain, attack, 4 / 255, seed=3)
    assert torch.equal(changed, again)
    steps = (changed - plain) * 255
    assert steps.abs().max() <= 4 + 1e-3
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert changed.min() >= 0
    assert changed.max() <= 1
    with torch.inference_mode():
        before, after = (detector.network.forward_features(one).logits for one in (plain, changed))
    assert after < before


def test_only_forgeries_are_attacked(benchmark, trained, tmp_path):
    before = sorted(path.name for path in benchmark.iterdir())
    words = [f"manifest={benchmark}", "measurement.type=attacks", f"measurement.detector={trained}"]
    words += ["measurement.attacks=[{name: pgd, steps: 5}]", "measurement.strengths=[16]"]
    words = ["run", "forensics.benchmark", *words, "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(stillroom, words)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out/output/result.json").read_text())
    assert found["threshold_from"] == "best balanced accuracy on the 6 validation rows"
    plain, attacked = found["attacks"]
    assert (plain["attack"], plain["strength"], plain["turned"]) == ("none", 0, None)
    assert plain["found"] > 0.6
    assert attacked["auc"]["value"] < plain["auc"]["value"]
    assert attacked["turned"] > 0.5
    assert "threshold: best balanced accuracy on the 6 validation rows\n" in done.output
    assert "no attack: auc " in done.output
    assert "of the detected forgeries pass" in done.output
    assert sorted(path.name for path in benchmark.iterdir()) == before


@pytest.mark.parametrize(
    ("measurement", "said"),
    [
        ("{{type: robustness, detector: {detector}, treatments: [blur]}}", "blur: auc "),
        ("{{type: attacks, detector: {detector}, attacks: [{{name: fgsm}}]}}", "fgsm by 4/255"),
        ("{{type: scores, scores: {scores}, leave_out: source}}", "source 4 left out"),
    ],
    ids=["robustness", "attacks", "scores"],
)
def test_a_benchmark_is_a_job_with_a_report(measurement, said, benchmark, trained, tmp_path):
    rows = [
        f"{item.id},{item.label + number % 3 / 9}"
        for number, item in enumerate(read_items(benchmark))
    ]
    (tmp_path / "s.csv").write_text("id,score\n" + "\n".join(rows))
    text = measurement.format(detector=trained, scores=tmp_path / "s.csv")
    head = f"kind: forensics.benchmark\nmanifest: {benchmark}\n"
    recipe = parse_recipe(f"{head}measurement: {text}\n")
    assert estimate_recipe(recipe).basis.startswith("6 ")
    artifact = run_recipe(recipe, tmp_path / "run")
    assert artifact.kind == "report"
    assert len(artifact.parents) == 2
    assert said in (tmp_path / "run/output/report.html").read_text()
    figures = json.loads((tmp_path / "run/output/result.json").read_text())
    assert {"attacks", "curves", "scores"} & set(figures)


@pytest.mark.parametrize(
    "measurement",
    [
        "{type: robustness, detector: d, treatments: [fog]}",
        "{type: robustness, detector: d, attacks: [{name: pgd}]}",
        "{type: attacks, detector: d, attacks: [{name: fgsm, steps: 3}]}",
        "{type: attacks, detector: d, strengths: [1.5]}",
        "{type: scores, scores: s.csv, detector: d, treatments: [jpeg]}",
    ],
)
def test_settings_of_another_measurement_cannot_be_written(measurement):
    with pytest.raises(RecipeError):
        parse_recipe(f"kind: forensics.benchmark\nmanifest: m\nmeasurement: {measurement}\n")


def test_every_treatment_can_be_named_in_a_recipe():
    assert set(get_args(TreatmentName)) == set(TREATMENTS)


def test_what_cannot_be_attacked_is_refused(benchmark, trained, tmp_path):
    detector = TrainedDetector.open(trained)
    write_items(tmp_path / "m.jsonl", [ManifestItem("a", "a.png", 0, split="test")])
    with pytest.raises(DataError) as caught:
        attack_manifest(tmp_path / "m.jsonl", detector, attacks=ATTACKS)
    assert caught.value.code == "forensics.stress"


def test_the_threshold_of_an_attack_never_comes_from_what_is_attacked(benchmark, trained, tmp_path):
    from stillroom.forensics.inference.results import Calibrator

    detector, small = TrainedDetector.open(trained), {"attacks": [FgsmAttack()], "strengths": [1]}
    for split in ("validation", ""):
        found = attack_manifest(benchmark, detector, split=split, **small)
        assert found.threshold_from.startswith("even odds by the detector's own calibration on ")
    detector.metadata = dataclasses.replace(detector.metadata, calibrator=Calibrator("none"))
    with pytest.raises(DataError, match="no validation rows other than") as caught:
        attack_manifest(benchmark, detector, split="", **small)
    assert caught.value.code == "forensics.stress"
    # Scores of the test move, and with them nothing that was chosen.
    detector.metadata = dataclasses.replace(
        detector.metadata, calibrator=Calibrator("platt", 0.0, -1, n=9)
    )
    found = attack_manifest(benchmark, detector, split="", **small)
    assert [(row.known, row.turned) for row in found.rows] == [(0.0, None), (0.0, None)]
    assert "no forgery was detected before" in found.lines()[-1]


def test_pictures_are_attacked_batch_by_batch(benchmark, trained, monkeypatch):
    from stillroom.forensics.benchmark import adversarial

    detector, small = TrainedDetector.open(trained), {"attacks": [FgsmAttack()], "split": ""}
    at_once = attack_manifest(benchmark, detector, **small)
    sizes, attack = [], adversarial.attack_planes
    monkeypatch.setattr(adversarial, "_BATCH_SIZE", 4)
    monkeypatch.setattr(
        adversarial,
        "attack_planes",
        lambda detector, planes, *given, **more: (
            sizes.append(len(planes)) or attack(detector, planes, *given, **more)
        ),
    )
    found = attack_manifest(benchmark, detector, **small)
    assert sizes == [size for size in (4, 4, 4, 3) for _ in (1, 2, 4)]  # 15 fakes, three strengths
    for row, wanted in zip(found.rows, at_once.rows, strict=True):
        assert row.area.value == pytest.approx(wanted.area.value)
        assert (row.strength, row.known, row.turned) == (
            wanted.strength,
            wanted.known,
            wanted.turned,
        )


def test_strengths_are_whole_steps_of_8_bits(benchmark, trained):
    detector = TrainedDetector.open(trained)
    with pytest.raises(DataError, match=r"strength of 1\.5 cannot be stored in 8-bit images"):
        attack_manifest(benchmark, detector, attacks=ATTACKS, strengths=[1.5])
