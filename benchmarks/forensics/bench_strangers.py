"""What detectors of sounds make of forgers that they never met.

``ears``: ``lfcc`` and ``aasist`` taught by some ways of forging drawn voices, tested on speakers
kept aside, on a way that was left out, and on recordings of people (SPEECH, spoken digits put end
to end), which neither ever heard.

``people``: ``lfcc`` taught by recordings of people, three times with two others of six kept
aside; two speakers bear no interval, so each fold is printed.

Runs lie in RUNS and are resumed. PARTS chooses: ears, people. STEPS bounds the learning of
each ear, SIZE_OF_AASIST its network.
"""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from stillroom.flow import run_recipe
from stillroom.forensics.inference.trained_detector import TrainedDetector
from stillroom.forensics.interfaces import AUDIO_FORGERIES
from stillroom.forensics.jobs.audio_detector import AudioDetectorRecipe
from stillroom.forensics.media.audio import Waveform
from stillroom.forensics.modalities.audio import AudioModality
from stillroom.forensics.settings import LicensedSource
from stillroom.forensics.synthesis.faces import split_identities
from stillroom.forensics.synthesis.voices import draw_voice, open_voices
from stillroom.forensics.training.train_audio import make_audio_validation_set
from stillroom.recipes import Recipe, build_recipe

ROOT = Path(__file__).resolve().parents[2]
MEDIA = Path(os.environ.get("MEDIA", ROOT / "../shared/data/media"))
SPEECH = Path(os.environ.get("SPEECH", MEDIA / "speech-fsdd/recordings"))
RUNS = Path(os.environ.get("RUNS", ROOT / "build/bench-strangers"))
PARTS = os.environ.get("PARTS", "ears,people").split(",")
SEED = int(os.environ.get("SEED", "0"))
STEPS = json.loads(os.environ.get("STEPS", '{"lfcc": 300, "aasist": 60}'))
EARS: dict[str, dict[str, Any]] = {
    "lfcc": {"name": "lfcc"},
    "aasist": {"name": "aasist", "size": os.environ.get("SIZE_OF_AASIST", "tiny")},
}
SECONDS = 1.0
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
    found = open_voices(source, [], seconds=SECONDS, seed=SEED, count=600, warn=lambda line: None)
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
    if "ears" in PARTS:
        measure_ears()
    if "people" in PARTS:
        measure_people()
