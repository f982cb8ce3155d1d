"""What detectors over time and of sounds make of forgers that they never met.

``time``: a head over eight frames (``temporal``) on a frozen detector of pictures, both taught by
self-blends of AT&T's faces; tested on people kept aside, on swaps that neither saw, and on a
forgery that is forged once and moved, so that nothing trembles. Beside it stands the mean of the
frozen detector's scores of the same frames, with the difference of both over the same draws.

``ears``: ``lfcc`` and ``aasist`` taught by some ways of forging drawn voices, tested on speakers
kept aside, on a way that was left out, and on recordings of people (SPEECH, spoken digits put end
to end), which neither ever heard.

``people``: ``lfcc`` taught by recordings of people, three times with two others of six kept
aside; two speakers bear no interval, so each fold is printed.

Runs lie in RUNS and are resumed. PARTS chooses: time, ears, people. STEPS bounds the learning of
each ear, SIZE_OF_AASIST its network, EACH how many faces of a person are tested over time,
and UNDER which treatments.
"""

import json
import os
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.flow import run_recipe
from stillroom.forensics.benchmark.metrics import bootstrap_areas, bootstrap_auc
from stillroom.forensics.inference.trained_detector import TrainedDetector
from stillroom.forensics.interfaces import AUDIO_FORGERIES, IMAGE_FORGERIES
from stillroom.forensics.jobs.audio_detector import AudioDetectorRecipe
from stillroom.forensics.jobs.image_detector import ForgeryData, ImageDetectorRecipe
from stillroom.forensics.media.audio import Waveform
from stillroom.forensics.media.face import Face
from stillroom.forensics.modalities.audio import AudioModality
from stillroom.forensics.modalities.image import ImageModality
from stillroom.forensics.settings import LicensedSource
from stillroom.forensics.synthesis.faces import open_faces, split_identities
from stillroom.forensics.synthesis.voices import draw_voice, open_voices
from stillroom.forensics.training.pairs import animate_face
from stillroom.forensics.training.train_audio import make_audio_validation_set
from stillroom.forensics.training.train_image import make_validation_set
from stillroom.forensics.training.validation import LabeledSamples
from stillroom.recipes import Recipe, build_recipe

ROOT = Path(__file__).resolve().parents[2]
MEDIA = Path(os.environ.get("MEDIA", ROOT / "../shared/data/media"))
FACES = Path(os.environ.get("FACES", MEDIA / "faces-att-orl"))
SPEECH = Path(os.environ.get("SPEECH", MEDIA / "speech-fsdd/recordings"))
RUNS = Path(os.environ.get("RUNS", ROOT / "build/bench-strangers"))
PARTS = os.environ.get("PARTS", "time,ears,people").split(",")
SEED = int(os.environ.get("SEED", "0"))
EPOCHS = float(os.environ.get("EPOCHS", "12"))
HEAD_EPOCHS = float(os.environ.get("HEAD_EPOCHS", "3"))
STEPS = json.loads(os.environ.get("STEPS", '{"lfcc": 300, "aasist": 60}'))
EARS: dict[str, dict[str, Any]] = {
    "lfcc": {"name": "lfcc"},
    "aasist": {"name": "aasist", "size": os.environ.get("SIZE_OF_AASIST", "tiny")},
}
UNDER = os.environ.get("UNDER", "clean,h264").split(",")
EACH = int(os.environ.get("EACH", "1000"))
SIZE, PIXELS, FRAMES, SECONDS = 128, 96, 8, 1.0
SWAPS: dict[str, dict[str, Any]] = {
    "sbi": {"name": "sbi"},
    "swap_alpha": {"name": "swap", "blending": "alpha"},
    "swap_lowres": {"name": "swap", "blending": "alpha", "resolution": round(80 / 224 * SIZE)},
    "swap_poisson": {"name": "swap", "blending": "poisson"},
}
BASIS = "Free Spoken Digit Dataset, CC BY-SA 4.0"
WAYS = ("vocoder", "source_filter", "sound_splice")


def tell(what: str, value: float, **more: object) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    line = {"what": what, "value": round(value, 4), **more, "machine": machine}
    print(json.dumps(line), flush=True)


def train(name: str, recipe: Recipe) -> tuple[TrainedDetector, float]:
    """Return a detector and the CPU minutes of learning it, 0 where it was there."""
    start = time.process_time()
    if not (RUNS / name / "artifact.json").is_file():
        run_recipe(recipe, RUNS / name, resume=True)
    minutes = (time.process_time() - start) / 60
    return TrainedDetector.open(RUNS / name, device="cpu"), round(minutes, 1)


def recipe_of_faces(epochs: float, **settings: Any) -> ImageDetectorRecipe:
    basis = "AT&T Laboratories Cambridge, free for research"
    people = {"type": "licensed", "folder": str(FACES), "basis": basis}
    found = build_recipe(
        {
            "kind": "forensics.image_detector",
            "seed": SEED,
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
            "train": {"epochs": epochs, "batch_size": 12, "threads": 1},
            **settings,
        }
    )
    assert isinstance(found, ImageDetectorRecipe)
    return found


def move_whole(faces: list[Face]) -> LabeledSamples:
    """Return clips of faces forged once, then moved as their twins are: nothing trembles."""
    method, fakes, twins, masks = IMAGE_FORGERIES.build(SWAPS["swap_alpha"]), [], [], []
    for number, face in enumerate(faces):
        others = [one for one in faces if one.identity != face.identity]
        rng = np.random.default_rng([SEED, number, 0x5EAD])
        forged = method.forge([face, others[int(rng.integers(len(others)))]], rng)
        lot = int(rng.integers(2**63))
        for image, clips in ((forged.image, fakes), (forged.twin, twins)):
            still = Face(image, face.landmarks, face.name, face.identity, face.digest)
            moved = animate_face(still, FRAMES, np.random.default_rng(lot))
            clips.append(np.stack([one.image for one in moved]))
        masks.append(np.stack([forged.mask] * FRAMES))
    count, groups = len(faces), tuple(face.identity for face in faces)
    labels = (*[1] * count, *[0] * count)
    return LabeledSamples((*fakes, *twins), labels, (*masks, *masks), (*groups, *groups))


def measure_time() -> None:
    base, base_minutes = train("frames", recipe_of_faces(EPOCHS, model={"name": "cnn"}))
    head_of = {"name": "temporal", "checkpoint": str(RUNS / "frames"), "frames": FRAMES}
    recipe = recipe_of_faces(HEAD_EPOCHS, model=head_of)
    head, head_minutes = train("head", recipe)
    for name, one in (("head", head), ("frames", base)):
        print(json.dumps({"what": name, **one.metadata.metrics}), flush=True)
    data = recipe.data
    assert isinstance(data, ForgeryData)
    bases = open_faces(
        data.faces, [], seed=SEED, count=400, size=SIZE, margin=1.5, say=lambda line: None
    )
    faces = [bases[number] for number in range(len(bases))]
    places = split_identities([face.identity for face in faces], SEED, data.split, "faces")
    people, seen = [], Counter[str]()
    for face in (faces[number] for number in places["test"]):
        seen[face.identity] += 1
        people += [face] if seen[face.identity] <= EACH else []
    trials = {
        name: make_validation_set(
            people, [IMAGE_FORGERIES.build(how)], seed=1000 + SEED, frames=FRAMES
        )
        for name, how in SWAPS.items()
    }
    trials["swap_alpha_steady"] = move_whole(people)
    for name, trial in trials.items():
        for condition in UNDER:
            clips = [ImageModality.conditions[condition](clip) for clip in trial.samples]
            over_time = head.logits(clips)
            frames = base.logits([frame for clip in clips for frame in clip])
            mean = frames.reshape(len(clips), FRAMES).mean(axis=1)
            beside(f"forensics/time/{name}/{condition}", trial, over_time, mean)
    tell("forensics/time/cpu_minutes", head_minutes, frames=base_minutes)


def beside(
    what: str, trial: LabeledSamples, ours: npt.NDArray[np.float64], plain: npt.NDArray[np.float64]
) -> None:
    """Print the area of the head, of the frames' mean, and their difference over the same draws."""
    found = bootstrap_auc(trial.labels, ours, trial.groups)
    mean = bootstrap_auc(trial.labels, plain, trial.groups)
    apart = bootstrap_areas(trial.labels, ours, trial.groups, 0)
    apart = apart - bootstrap_areas(trial.labels, plain, trial.groups, 0)
    low, high = np.quantile(apart[np.isfinite(apart)], (0.025, 0.975))
    tell(
        what,
        found.value,
        interval=[round(found.low, 3), round(found.high, 3)],
        frames_mean=round(mean.value, 3),
        frames_interval=[round(mean.low, 3), round(mean.high, 3)],
        gain=round(found.value - mean.value, 3),
        gain_interval=[round(float(low), 3), round(float(high), 3)],
        people=found.n,
        clips=len(ours),
        faces="real" if FACES.is_dir() else "drawn",
    )


def recipe_of_ears(model: str, ways: list[str], **settings: Any) -> AudioDetectorRecipe:
    fit = {"steps": STEPS[model], "batch_size": 6, "threads": 1, "learning_rate": 1e-3}
    found = build_recipe(
        {
            "kind": "forensics.audio_detector",
            "seed": SEED,
            "model": EARS[model],
            "forgeries": ways,
            "count": 300,
            "seconds": SECONDS,
            "split": {"test": 0.25, "validation": 0.15},
            "train": fit,
            **settings,
        }
    )
    assert isinstance(found, AudioDetectorRecipe)
    return found


def people_speaking() -> tuple[Waveform, ...]:
    """Return recordings of people, cut to one length; each speaker's digits are put end to end."""
    if not SPEECH.is_dir():
        return ()
    for path in sorted(SPEECH.glob("*.wav")):
        place = RUNS / "speakers" / path.stem.split("_")[1] / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(path.resolve())
    source = LicensedSource(type="licensed", folder=str(RUNS / "speakers"), basis=BASIS)
    found = open_voices(source, [], seconds=SECONDS, seed=SEED, count=600, say=lambda line: None)
    return found.waves


def measure_ears() -> None:
    spoken = people_speaking()
    voices = [draw_voice(SEED, number, SECONDS) for number in range(300)]
    for model in STEPS:
        for left_out in WAYS if model == "lfcc" else WAYS[1:2]:
            taught = [way for way in WAYS if way != left_out]
            recipe = recipe_of_ears(model, taught)
            detector, minutes = train(f"{model}-without-{left_out}", recipe)
            places = split_identities(
                [one.identity for one in voices], recipe.seed, recipe.split, "voices"
            )
            strangers = [voices[at] for at in places["test"]]
            for way in WAYS:
                sources = {"drawn": strangers, **({"people": spoken} if spoken else {})}
                for whose, waves in sources.items():
                    trial = make_audio_validation_set(
                        waves, [AUDIO_FORGERIES.build(way)], seed=1000 + SEED
                    )
                    for condition in ("clean", "mp3_64") if model == "lfcc" else ("clean",):
                        metric = trial.measure(
                            detector, AudioModality.conditions[condition], condition
                        )
                        tell(
                            f"forensics/ears/{model}/{whose}/{way}/{condition}",
                            metric.value,
                            interval=[round(metric.low, 3), round(metric.high, 3)],
                            met=way != left_out,
                            taught=taught,
                            speakers=metric.n,
                            sounds=len(trial.samples),
                            steps=STEPS[model],
                            cpu_minutes=minutes,
                        )


def measure_people() -> None:
    """Learn from four speakers or fewer, test on two that were never heard."""
    spoken, done = people_speaking(), set[str]()
    taught = [way for way in WAYS if way != "source_filter"]
    voices = {"type": "licensed", "folder": str(RUNS / "speakers"), "basis": BASIS}
    split = {"test": 0.34, "validation": 0.2}
    for seed in range(SEED, SEED + 400) if spoken else ():
        checked = recipe_of_ears("lfcc", taught, seed=seed, count=600, voices=voices, split=split)
        speaking = [one.identity for one in spoken]
        try:
            places = split_identities(speaking, seed, checked.split, "speakers")
        except ValueError:
            continue  # this seed leaves a split without anyone
        speakers = {spoken[at].identity for at in places["test"]}
        if (
            len(speakers) != 2
            or speakers & done
            or len({spoken[at].identity for at in places["train"]}) < 2
        ):
            continue
        detector, minutes = train(f"lfcc-people-{seed}", checked)
        strangers = [spoken[at] for at in places["test"]]
        for way in WAYS:
            trial = make_audio_validation_set(
                strangers, [AUDIO_FORGERIES.build(way)], seed=1000 + seed
            )
            tell(
                f"forensics/ears/lfcc_of_people/{way}",
                trial.measure(detector, lambda waveform: waveform, "clean").value,
                met=way in taught,
                speakers=len(speakers),
                sounds=len(trial.samples),
                cpu_minutes=minutes,
            )
        done |= speakers
        if len(done) == 6:
            return


if __name__ == "__main__":
    if "time" in PARTS:
        measure_time()
    if "ears" in PARTS:
        measure_ears()
    if "people" in PARTS:
        measure_people()
