"""Learning a detector of forged sounds: speakers apart, pairs forged on the fly, chances fitted.

As ``learning`` does of faces: no fake leaves memory, and test speakers are touched once, at the
end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.evaluate import Metric
from stillroom.forensics.audits import audit_pairs
from stillroom.forensics.calibrating import Calibrator, fit_calibrator
from stillroom.forensics.detecting import About, TrainedDetector, write_detector
from stillroom.forensics.detector_card import write_sound_card
from stillroom.forensics.detector_settings import DetectorSettings
from stillroom.forensics.domain_learning import (
    Sample,
    know_waves,
    learn_domain,
    name_set,
    pick,
    tell_domain,
)
from stillroom.forensics.extras import need
from stillroom.forensics.learning import measure_chances, split_identities, start_from
from stillroom.forensics.measures import cluster_interval
from stillroom.forensics.method import ForgedSound, Resynthesis
from stillroom.forensics.networks import Network
from stillroom.forensics.pairs import PairBatch
from stillroom.forensics.recipe import ForensicsRecipe, SoundSettings
from stillroom.forensics.sound_views import SOUND_CONDITIONS, draw_sound_view, even_out
from stillroom.forensics.voices import open_voices
from stillroom.forensics.waves import RATE, Wave, Waves
from stillroom.jobs import Job
from stillroom.models.causal import choose_device
from stillroom.provenance import Artifact, digest_json, make_parent
from stillroom.records import Link, Origin
from stillroom.train.loop import Loss, train
from stillroom.train.precision import fixed_threads

if TYPE_CHECKING:
    from stillroom.train.ranks import Ranks

__all__ = ["SoundSource", "SoundTrial", "learn_sounds", "make_sound_trial"]

_TRAIN, _TEST = 0x50D, 0x7E5D
_REPEATS = 2


@dataclass(frozen=True, eq=False)
class SoundTrial:
    """Sounds with labels, and whose voices they are; fakes first."""

    sounds: tuple[Waves, ...]
    labels: tuple[int, ...]
    groups: tuple[str, ...]

    def measure(self, detector: TrainedDetector, name: str) -> Metric:
        """Return the area under the curve under one of ``SOUND_CONDITIONS``."""
        change = SOUND_CONDITIONS[name]
        scores = detector.logits([change(one) for one in self.sounds])
        return cluster_interval(self.labels, scores, self.groups, name=name)


class SoundSource:
    """Gives the pairs of any step; each a pure function of seed, pass and recording."""

    def __init__(
        self,
        waves: Sequence[Wave],
        methods: Sequence[Resynthesis],
        settings: DetectorSettings,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Stand over recordings; each pass shuffles them."""
        self.waves, self.methods, self.settings = waves, methods, settings
        self.seed, self.device = seed, device
        self.identity = digest_json(
            [
                [[wave.digest, wave.name] for wave in waves],
                [method.model_dump(mode="json") for method in methods],
                settings.model_dump(mode="json"),
                seed,
            ]
        )

    def __len__(self) -> int:
        """Return how many recordings one pass has."""
        return len(self.waves)

    def begin(self, step: int, model: nn.Module, ranks: Ranks) -> Mapping[str, float]:
        """Do nothing: pairs are made as they are loaded."""
        return {}

    def plan(self, step: int) -> list[list[int]]:
        """Return the step's places in the endless row of passes, as one micro-batch."""
        size = min(self.settings.train.batch_size, len(self.waves))
        return [list(range(step * size, step * size + size))]

    def valid(self, group: Sequence[int]) -> int:
        """Return how many sounds a micro-batch has."""
        return 2 * len(group)

    def load(self, group: Sequence[int]) -> PairBatch:
        """Forge the pairs of a micro-batch."""
        fakes, reals, names = [], [], []
        for place in group:
            turn, offset = divmod(place, len(self.waves))
            order = np.random.default_rng([self.seed, turn, _TRAIN]).permutation(len(self.waves))
            number = int(order[offset])
            rng = np.random.default_rng([self.seed, turn, number, _TRAIN])
            forged = _forge(self.waves, number, self.methods, rng)
            pair = draw_sound_view(forged.values, forged.twin, self.settings.views.jpeg, rng)
            fakes.append(pair[0])
            reals.append(pair[1])
            names.append(self.waves[number].name)
        count = len(names)
        labels = torch.cat([torch.ones(count), torch.zeros(count)])
        if self.settings.shuffle_labels:
            labels = torch.tensor([self._lot(name, turn) for turn in (1, 0) for name in names])
        given = torch.from_numpy(np.stack([*fakes, *reals])).to(self.device)
        return PairBatch(given, labels.to(self.device), torch.zeros(2 * count), tuple(names))

    def _lot(self, name: str, label: int) -> float:
        return float(int(digest_json([self.seed, name, label])[:8], 16) % 2)


def learn_sounds(recipe: ForensicsRecipe, sound: SoundSettings, job: Job) -> Artifact:
    """Learn the recipe's detector of sounds and publish its checkpoint.

    Raises:
        DataError: If there are too few voices, or no consent for them.
        Cancelled: If the user stopped it; ``--resume`` goes on to the same bytes.
    """
    if recipe.detector is None:
        raise TypeError("the recipe trains no detector")
    need("av")
    settings, methods = recipe.detector, sound.methods
    uses = tuple(dict.fromkeys(method.method_name() for method in methods))
    voices = open_voices(sound, uses, seed=recipe.seed, count=max(recipe.count, 9), say=job.say)
    places = split_identities([wave.identity for wave in voices.waves], recipe, "voices")
    parts = {name: [voices.waves[at] for at in numbers] for name, numbers in places.items()}
    job.say(
        f"{len(parts['train'])} sounds to learn from, {len(parts['validation'])} to calibrate on, "
        f"{len(parts['test'])} to test on; no speaker is in two of these"
    )
    length = round(sound.seconds * RATE)
    with fixed_threads(settings.train.threads):
        network, trained = _teach(recipe, settings, parts["train"], methods, length, job)
        about = About(
            *(settings.model, length, RATE, 1.0, Calibrator("none"), uses, voices.origin),
            kept=network.kept,
            learned=name_set(
                Path(sound.folder).resolve().name if sound.folder else "drawn voices", voices.waves
            ),
        )
        detector, figures = _prove(recipe, network, about, parts, methods, job)
        fingerprint = write_detector(job.output, network, detector.about)
    write_sound_card(job.output, detector.about, figures, sound)
    clean = figures["auc"]["clean"]
    job.say(
        f"area under the curve on speakers it never heard: {clean['value']:.3f} "
        f"[{clean['low'] or 0:.3f}, {clean['high'] or 1:.3f}]"
    )
    tell_domain(detector.about, job.say)
    return job.finish(
        "checkpoint",
        parents=[make_parent("voices", Path(sound.folder), job.out)] if sound.folder else [],
        origin=Origin("synthetic")
        .then(Link(f"forensics.detectors.{settings.model.method_name()}"))
        .to_json(),
        details={
            "detector": detector.about.to_json(),
            "train": trained,
            "fingerprint": fingerprint,
            "voices": voices.origin,
            "consent": voices.consent,
            "left_out": voices.left_out,
        },
    )


def make_sound_trial(
    waves: Sequence[Wave], methods: Sequence[Resynthesis], *, seed: int, repeats: int = 1
) -> SoundTrial:
    """Forge some recordings, always the same way, and return them with their real twins."""
    fakes, twins, groups = [], [], []
    for number in range(len(waves)):
        for again in range(repeats):
            rng = np.random.default_rng([seed, number, again, _TEST])
            forged = _forge(waves, number, methods, rng)
            fakes.append(forged.values)
            twins.append(forged.twin)
            groups.append(waves[number].identity)
    count = len(fakes)
    return SoundTrial((*fakes, *twins), (*[1] * count, *[0] * count), (*groups, *groups))


def _forge(
    waves: Sequence[Wave], number: int, methods: Sequence[Resynthesis], rng: np.random.Generator
) -> ForgedSound:
    method = methods[int(rng.integers(len(methods)))] if len(methods) > 1 else methods[0]
    wave = waves[number]
    given = [wave]
    if method.waves_needed > 1:
        others = [one for one in waves if one.identity != wave.identity] or list(waves)
        given.append(others[int(rng.integers(len(others)))])
    return even_out(method.forge(given, rng))


def _teach(
    recipe: ForensicsRecipe,
    settings: DetectorSettings,
    waves: Sequence[Wave],
    methods: Sequence[Resynthesis],
    length: int,
    job: Job,
) -> tuple[Network, dict[str, Any]]:
    device = choose_device("auto")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = settings.model.build(length)
    start_from(settings, network)
    network.to(device)
    source = SoundSource(waves, methods, settings, seed=recipe.seed, device=device)

    def objective(model: nn.Module, batch: PairBatch) -> Loss:
        if not isinstance(model, Network):
            raise TypeError("a detector is a Network")
        total, parts = model.loss(model.judge(batch.images), batch.labels, _nothing(batch))
        return Loss(total, parts)

    fit = settings.train.model_copy(
        update={"batch_size": min(settings.train.batch_size, len(waves))}
    )
    summary = train(network, source, objective, fit.to_train(), job, seed=recipe.seed)
    return network.eval(), asdict(summary)


def _nothing(batch: PairBatch) -> Tensor:
    return batch.masks.to(batch.labels)


def _prove(
    recipe: ForensicsRecipe,
    network: Network,
    about: About,
    parts: Mapping[str, Sequence[Wave]],
    methods: Sequence[Resynthesis],
    job: Job,
) -> tuple[TrainedDetector, dict[str, Any]]:
    """Calibrate on validation speakers, then measure once on test speakers."""
    settings = recipe.detector
    if settings is None:
        raise TypeError("the recipe trains no detector")
    detector = TrainedDetector(network, about)
    with job.phase("prove", 3, "steps") as progress:
        known = make_sound_trial(parts["validation"], methods, seed=recipe.seed, repeats=_REPEATS)
        calibrator = fit_calibrator(
            settings.calibration, known.labels, detector.logits(known.sounds)
        )
        works = bool(known.measure(detector, "clean").low > 0.5)
        progress.advance()
        test = make_sound_trial(parts["test"], methods, seed=recipe.seed + 1)
        figures: dict[str, Any] = {
            "auc": {name: test.measure(detector, name).to_json() for name in SOUND_CONDITIONS}
        }
        logits = detector.logits(test.sounds)
        figures |= measure_chances(logits, calibrator, test.labels)
        figures["faces"] = {name: len(waves) for name, waves in parts.items()}
        progress.advance()
        about = replace(
            about,
            calibrator=calibrator,
            is_shown=works and not settings.shuffle_labels,
            figures=figures,
        )
        taught = make_sound_trial(
            [parts["train"][at] for at in pick(range(len(parts["train"])))],
            methods,
            seed=recipe.seed + 2,
        )
        coded = settings.views.jpeg
        domain = learn_domain(
            TrainedDetector(network, about),
            {
                name: Sample(one.sounds, one.labels, one.groups)
                for name, one in (("train", taught), ("validation", known), ("test", test))
            },
            know_waves(parts["train"], coded=coded),
            lambda values, rng: draw_sound_view(values, values, coded, rng)[0],
            seed=recipe.seed,
        )
        about = replace(about, domain=domain, audit=_audit(taught, recipe.seed))
        progress.advance()
    return TrainedDetector(network, about), figures


def _audit(taught: SoundTrial, seed: int) -> dict[str, Any]:
    """Return the figures of the audit of the pairs: what is no trace of a forgery tells nothing."""
    traits = [
        {
            "length": float(len(one)),
            "loudness": round(float(np.sqrt(np.mean(np.square(one)))), 4),
            "offset": round(float(one.mean()), 4),
        }
        for one in taught.sounds
    ]
    found = audit_pairs(traits, taught.labels, taught.groups, seed=seed)
    return {"of": "pairs made in memory", **found.summary()}
