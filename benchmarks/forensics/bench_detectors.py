"""What a detector of self-blended faces makes of forgeries it never saw, within ten CPU minutes.

Real faces are read from FACES (a folder a person; default the AT&T set of the shared data). Without
them faces are drawn, and the lines say so: of photographs such figures say nothing. Each seed
splits the people anew; runs lie in RUNS and are resumed, so that a stopped benchmark goes on.
PARTS chooses: auc, control, whole, explain.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pointing_game import run_pointing_game

from stillroom.evaluate import Metric
from stillroom.flow import run_recipe
from stillroom.forensics.benchmark.metrics import bootstrap_auc, roc_auc
from stillroom.forensics.inference.trained_detector import TrainedDetector
from stillroom.forensics.interfaces import IMAGE_DETECTORS, IMAGE_FORGERIES
from stillroom.forensics.jobs.image_detector import ForgeryData, ImageDetectorRecipe
from stillroom.forensics.media.face_types import Face, Image
from stillroom.forensics.media.transforms import compress_jpeg
from stillroom.forensics.modalities.image import ImageModality, to_channels_first
from stillroom.forensics.settings import SyntheticSource
from stillroom.forensics.synthesis.faces import open_faces, split_identities
from stillroom.forensics.training.train_image import make_validation_set
from stillroom.recipes import build_recipe

ROOT = Path(__file__).resolve().parents[2]
MEDIA = Path(os.environ.get("MEDIA", ROOT / "../shared/data/media"))
FACES = Path(os.environ.get("FACES", MEDIA / "faces-att-orl"))
SYNTHETIC = Path(os.environ.get("SYNTHETIC", MEDIA / "faces-synthetic"))
RUNS = Path(os.environ.get("RUNS", ROOT / "build/bench-detectors"))
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "0,1,2").split(",")]
PARTS = os.environ.get("PARTS", "auc,control,whole,explain").split(",")
EPOCHS = float(os.environ.get("EPOCHS", "12"))
THREADS = int(os.environ.get("THREADS", "1"))
SIZE, PIXELS = 128, 96
LOW = round(80 / 224 * SIZE)  # a face rendered at 80 pixels, were it 224 wide
TARGETS = {"sbi": 0.70, "swap_alpha": 0.66, "swap_lowres": 0.90, "swap_poisson": 0.69}
AIMS = {"sbi": 0.80, "swap_alpha": 0.75, "swap_lowres": 0.95, "swap_poisson": 0.78}
TESTS: dict[str, dict[str, Any]] = {
    "sbi": {"name": "sbi"},
    "swap_alpha": {"name": "swap", "blending": "alpha"},
    "swap_lowres": {"name": "swap", "blending": "alpha", "resolution": LOW},
    "swap_poisson": {"name": "swap", "blending": "poisson"},
}


def tell(what: str, value: float, **more: object) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    line = {"what": what, "value": round(value, 4), **more, "machine": machine}
    print(json.dumps(line), flush=True)


def recipe_of(seed: int, **detector: Any) -> ImageDetectorRecipe:
    """Return the recipe of one seed; people are named by their folder."""
    basis = "AT&T Laboratories Cambridge, free for research"
    people = {"type": "licensed", "folder": str(FACES), "basis": basis}
    found = build_recipe(
        {
            "kind": "forensics.image_detector",
            "seed": seed,
            "model": {"name": "cnn"},
            "data": {
                "type": "forgeries",
                "forgeries": [{"name": "sbi"}],
                "faces": people if FACES.is_dir() else {"type": "drawn"},
                "count": 400,
                "split": {"test": 0.3, "validation": 0.1},
            },
            "face_size": SIZE,
            "face_margin": 1.5,
            "image_size": PIXELS,
            "train": {"epochs": EPOCHS, "batch_size": 12, "threads": THREADS},
            **detector,
        }
    )
    assert isinstance(found, ImageDetectorRecipe)
    return found


def train(name: str, recipe: ImageDetectorRecipe) -> tuple[TrainedDetector, float]:
    """Return a detector and the CPU minutes of learning it, also over several sittings."""
    out, clock = RUNS / f"{name}-{recipe.seed}", RUNS / f"{name}-{recipe.seed}.cpu"
    RUNS.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    try:
        if not (out / "artifact.json").is_file():  # what was finished before is taken as it is
            run_recipe(recipe, out, resume=True)
    finally:
        before = float(clock.read_text()) if clock.is_file() else 0.0
        clock.write_text(str(before + time.process_time() - start))
    return TrainedDetector.open(out, device="cpu"), float(clock.read_text()) / 60


def faces_of(recipe: ImageDetectorRecipe) -> dict[str, list[Face]]:
    """Return the faces by split."""
    data = recipe.data
    assert isinstance(data, ForgeryData)
    faces = read_faces(data.faces, seed=recipe.seed, count=data.count)
    people = [face.identity for face in faces]
    splits = split_identities(people, recipe.seed, data.split, "faces")
    return {name: [faces[number] for number in numbers] for name, numbers in splits.items()}


def read_faces(source: Any, *, seed: int, count: int) -> list[Face]:
    bases = open_faces(
        source, [], seed=seed, count=count, size=SIZE, margin=1.5, warn=lambda line: None
    )
    return [bases[number] for number in range(len(bases))]


def summarize(what: str, found: list[Metric], **more: object) -> None:
    """Print the mean over seeds; its limits are the means of the seeds' own, which is cautious."""
    values = [metric.value for metric in found]
    tell(
        what,
        statistics.mean(values),
        low=round(statistics.mean(metric.low for metric in found), 4),
        high=round(statistics.mean(metric.high for metric in found), 4),
        seeds=[round(value, 4) for value in values],
        people=[metric.n for metric in found],
        faces="real" if FACES.is_dir() else "drawn",
        **more,
    )


def measure_auc() -> None:
    """Held-out self-blends, and swaps of three kinds, clean and degraded."""
    found: dict[str, list[Metric]] = {}
    minutes = []
    for seed in SEEDS:
        recipe = recipe_of(seed)
        detector, spent = train("cnn", recipe)
        minutes.append(round(spent, 2))
        strangers = faces_of(recipe)["test"]  # second faces of swaps are of test people, too
        for name, settings in TESTS.items():
            trial = make_validation_set(
                strangers,
                [IMAGE_FORGERIES.build(settings)],
                seed=1000 + seed,
            )
            for condition, change in ImageModality.conditions.items():
                found.setdefault(f"{name}/{condition}", []).append(
                    trial.measure(detector, change, name)
                )
    for name in TESTS:
        summarize(
            f"forensics/auc/{name}",
            found[f"{name}/clean"],
            target=TARGETS[name],
            aim=AIMS[name],
            cpu_minutes=minutes,
        )
        for condition in list(ImageModality.conditions)[1:]:
            summarize(f"forensics/auc/{name}/{condition}", found[f"{name}/{condition}"])


def measure_control() -> None:
    """Labels drawn by lot: what the protocol measures of a detector that learned nothing."""
    found = []
    for seed in SEEDS:
        recipe = recipe_of(seed, shuffle_labels=True)
        detector, _ = train("shuffled", recipe)
        faces = faces_of(recipe)["test"]
        trial = make_validation_set(faces, [IMAGE_FORGERIES.build("sbi")], seed=1000 + seed)
        found.append(trial.measure(detector, lambda image: image, "auc"))
    summarize("forensics/auc/shuffled_labels", found, wanted=0.5)


def measure_explain() -> None:
    """Heatmaps against masks: hits of the highest place, beside chance and random weights."""
    for name, settings in {"sbi": TESTS["sbi"], "swap_lowres": TESTS["swap_lowres"]}.items():
        rows = []
        for seed in SEEDS:
            recipe = recipe_of(seed)
            detector, _ = train("cnn", recipe)
            strangers = faces_of(recipe)["test"]
            trial = make_validation_set(
                strangers, [IMAGE_FORGERIES.build(settings)], seed=1000 + seed
            )
            rows.append(run_pointing_game(detector, trial, seed=seed))
        hits, chance, control, middle = (
            statistics.mean(getattr(row, key) for row in rows)
            for key in ("hits", "chance", "random_weights", "middle")
        )
        tell(
            f"forensics/explain/pointing_game/{name}",
            hits,
            times_chance=round(hits / chance, 2),
            times_random=round(hits / control, 2),
            times_middle=round(hits / middle, 2),
            chance=round(chance, 4),
            random_weights=round(control, 4),
            always_the_middle=round(middle, 4),
            seeds=[round(row.hits, 4) for row in rows],
            n=[row.n for row in rows],
            target_times_chance=2.0,
        )


def measure_whole() -> None:
    """Whole synthetic faces against real ones: a spectral head, both classes treated alike."""
    recipe = recipe_of(0)
    if not FACES.is_dir() or not SYNTHETIC.is_dir():
        print(json.dumps({"what": "forensics/auc/whole_image", "skipped": "no photographs"}))
        return
    real = [face for faces in faces_of(recipe).values() for face in faces]
    synthetic = load_synthetic()
    for quality, side in ((90, 96), (75, 64)):
        treat = same_for_all(side, quality)
        tell_whole(f"generator_q{quality}_{side}", real, synthetic, treat)
        twins = [
            Face(upsampled(face, at), face.landmarks, face.name, face.identity, "")
            for at, face in enumerate(real)
        ]
        tell_whole(f"upsampled_q{quality}_{side}", real, twins, treat)


def load_synthetic() -> list[Face]:
    source = SyntheticSource(type="synthetic", folder=str(SYNTHETIC), generator="StyleGAN")
    return read_faces(source, seed=0, count=400)


def upsampled(face: Face, number: int) -> Image:
    forgery = IMAGE_FORGERIES.build("upsample")
    return forgery.forge([face], np.random.default_rng([number, 0x5EC])).image


def same_for_all(side: int, quality: int) -> Callable[[Image], Image]:
    """Return what both classes go through: gray, one size, one JPEG table."""

    def treat(image: Image) -> Image:
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(gray, (side, side), interpolation=cv2.INTER_AREA)
        return compress_jpeg(np.repeat(small[..., None], 3, axis=2), quality)

    return treat


def tell_whole(
    name: str, real: list[Face], fake: list[Face], treat: Callable[[Image], Image]
) -> None:
    """Five folds by person: a linear head on spectra, and one on brightness and contrast alone."""
    images = [treat(face.image) for face in (*real, *fake)]
    labels = np.array([0] * len(real) + [1] * len(fake))
    people = [face.identity for face in (*real, *fake)]
    network: Any = IMAGE_DETECTORS.build("spectral").build(images[0].shape[0])
    with torch.inference_mode():
        spectra = network.describe(torch.from_numpy(to_channels_first(images))).double().numpy()
    plain = np.array([[image.mean(), image.std()] for image in images])
    scores = fold_scores(spectra, labels, people)
    metric = bootstrap_auc(labels, scores, people)
    control = roc_auc(labels, fold_scores(plain, labels, people))
    tell(
        f"forensics/auc/whole_image/{name}",
        metric.value,
        low=round(metric.low, 4),
        high=round(metric.high, 4),
        n=len(images),
        brightness_alone=None if control is None else round(control, 4),
        target=0.85,
    )


def fold_scores(features: np.ndarray, labels: np.ndarray, people: list[str]) -> np.ndarray:
    """Return held-out scores of ridge-penalized logistic regression, folds by person."""
    names = sorted(set(people))
    order = {name: at % 5 for at, name in enumerate(np.random.default_rng(0).permutation(names))}
    fold = np.array([order[person] for person in people])
    scores = np.zeros(len(labels))
    for held in range(5):
        known = fold != held
        mean, spread = features[known].mean(0), features[known].std(0) + 1e-9
        scaled = (features - mean) / spread
        scaled = np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)
        weights = np.zeros(scaled.shape[1])
        for _ in range(30):
            said = 1 / (1 + np.exp(-np.clip(scaled[known] @ weights, -30, 30)))
            slope = scaled[known].T @ (said - labels[known]) + 10.0 * weights
            bend = (scaled[known].T * (said * (1 - said))) @ scaled[known]
            weights -= np.linalg.solve(bend + 10.0 * np.eye(len(weights)), slope)
        scores[~known] = scaled[~known] @ weights
    return scores


def main() -> None:
    cv2.setNumThreads(1)
    parts = {
        "auc": measure_auc,
        "control": measure_control,
        "whole": measure_whole,
        "explain": measure_explain,
    }
    for name in PARTS:
        parts[name]()


if __name__ == "__main__":
    main()
