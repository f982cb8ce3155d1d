"""Audio detector training: speaker splits, on-the-fly forgeries, and calibration.

As in ``train_image``, no fake leaves memory, and test speakers are used once, at the end.
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
from stillroom.forensics.benchmark.audit import audit_pairs
from stillroom.forensics.benchmark.metrics import bootstrap_auc
from stillroom.forensics.extras import require_packages
from stillroom.forensics.inference.calibration import Calibrator, fit_calibrator
from stillroom.forensics.inference.trained_detector import (
    DetectorMetadata,
    TrainedDetector,
    load_initial_weights,
    write_detector,
)
from stillroom.forensics.interfaces import AudioForgery, ForgedAudio
from stillroom.forensics.media.audio import SAMPLE_RATE, AudioSamples, Waveform
from stillroom.forensics.media.augmentation import (
    AUDIO_CONDITIONS,
    augment_audio_pair,
    match_loudness,
)
from stillroom.forensics.networks.interfaces import DetectorNetwork
from stillroom.forensics.recipe import AudioSettings, ForensicsRecipe
from stillroom.forensics.settings import DetectorSettings
from stillroom.forensics.synthesis.faces import split_identities
from stillroom.forensics.synthesis.voices import open_voices
from stillroom.forensics.training.model_card import write_audio_model_card
from stillroom.forensics.training.pairs import DetectorBatch
from stillroom.forensics.training.validation import (
    LabeledSamples,
    describe_training_set,
    fit_domain,
    measure_calibration,
    report_domain,
    select_evenly,
    summarize_audio_files,
)
from stillroom.jobs import Job
from stillroom.models.local.causal_lm import choose_device
from stillroom.provenance import Artifact, digest_json, make_parent
from stillroom.records import Link, Origin
from stillroom.train.loop import Loss, train
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.train.distributed import ProcessGroup

__all__ = [
    "AudioPairDataset",
    "AudioValidationSet",
    "make_audio_validation_set",
    "train_audio_detector",
]

_TRAIN, _TEST = 0x50D, 0x7E5D
_REPEATS = 2


@dataclass(frozen=True, eq=False)
class AudioValidationSet:
    """Waveforms with labels and speakers; fakes first."""

    sounds: tuple[AudioSamples, ...]
    labels: tuple[int, ...]
    groups: tuple[str, ...]

    def measure(self, detector: TrainedDetector, name: str) -> Metric:
        """Return the area under the curve under one of ``AUDIO_CONDITIONS``."""
        change = AUDIO_CONDITIONS[name]
        scores = detector.logits([change(waveform) for waveform in self.sounds])
        return bootstrap_auc(self.labels, scores, self.groups, name=name)


class AudioPairDataset:
    """Training pairs; each is a pure function of seed, pass and recording."""

    def __init__(
        self,
        waves: Sequence[Waveform],
        methods: Sequence[AudioForgery],
        settings: DetectorSettings,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Wrap the recordings, which each pass shuffles."""
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
        """Return the number of recordings per pass."""
        return len(self.waves)

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Do nothing: pairs are forged as they are loaded."""
        return {}

    def plan(self, step: int) -> list[list[int]]:
        """Return the step's positions in the sequence of passes, as one micro-batch."""
        size = min(self.settings.train.batch_size, len(self.waves))
        return [list(range(step * size, step * size + size))]

    def valid(self, group: Sequence[int]) -> int:
        """Return the number of waveforms in a micro-batch."""
        return 2 * len(group)

    def load(self, group: Sequence[int]) -> DetectorBatch:
        """Forge the pairs of a micro-batch."""
        fakes, reals, names = [], [], []
        for position in group:
            epoch, offset = divmod(position, len(self.waves))
            order = np.random.default_rng([self.seed, epoch, _TRAIN]).permutation(len(self.waves))
            number = int(order[offset])
            rng = np.random.default_rng([self.seed, epoch, number, _TRAIN])
            forged = _forge_pair(self.waves, number, self.methods, rng)
            pair = augment_audio_pair(forged.values, forged.twin, self.settings.views.jpeg, rng)
            fakes.append(pair[0])
            reals.append(pair[1])
            names.append(self.waves[number].name)
        count = len(names)
        labels = torch.cat([torch.ones(count), torch.zeros(count)])
        if self.settings.shuffle_labels:
            labels = torch.tensor(
                [self._draw_label(name, epoch) for epoch in (1, 0) for name in names]
            )
        waveforms = torch.from_numpy(np.stack([*fakes, *reals])).to(self.device)
        return DetectorBatch(
            waveforms, labels.to(self.device), torch.zeros(2 * count), tuple(names)
        )

    def _draw_label(self, name: str, label: int) -> float:
        return float(int(digest_json([self.seed, name, label])[:8], 16) % 2)


def train_audio_detector(recipe: ForensicsRecipe, sound: AudioSettings, job: Job) -> Artifact:
    """Train the recipe's audio detector and publish its checkpoint.

    Raises:
        DataError: If there are too few voices, or no consent for them.
        Cancelled: If the user stopped it; ``--resume`` continues to the same bytes.
    """
    if recipe.detector is None:
        raise TypeError("the recipe trains no detector")
    require_packages("av")
    settings, methods = recipe.detector, sound.methods
    uses = tuple(dict.fromkeys(method.method_name() for method in methods))
    voices = open_voices(sound, uses, seed=recipe.seed, count=max(recipe.count, 9), say=job.say)
    numbers_by_split = split_identities([wave.identity for wave in voices.waves], recipe, "voices")
    parts = {
        name: [voices.waves[number] for number in numbers]
        for name, numbers in numbers_by_split.items()
    }
    job.say(
        f"{len(parts['train'])} waveforms for training, {len(parts['validation'])} for validation, "
        f"{len(parts['test'])} for the test; no speaker is in two of these"
    )
    length = round(sound.seconds * SAMPLE_RATE)
    with limit_threads(settings.train.threads):
        network, trained = _fit_network(recipe, settings, parts["train"], methods, length, job)
        metadata = DetectorMetadata(
            *(settings.model, length, SAMPLE_RATE, 1.0, Calibrator("none"), uses, voices.origin),
            network_config=network.config,
            training_set=describe_training_set(
                Path(sound.folder).resolve().name if sound.folder else "drawn voices", voices.waves
            ),
        )
        detector, figures = _evaluate_detector(recipe, network, metadata, parts, methods, job)
        fingerprint = write_detector(job.output, network, detector.metadata)
    write_audio_model_card(job.output, detector.metadata, figures, sound)
    clean = figures["auc"]["clean"]
    job.say(
        f"area under the curve on unseen speakers: {clean['value']:.3f} "
        f"[{clean['low'] or 0:.3f}, {clean['high'] or 1:.3f}]"
    )
    report_domain(detector.metadata, job.say)
    return job.finish(
        "checkpoint",
        parents=[make_parent("voices", Path(sound.folder), job.out)] if sound.folder else [],
        origin=Origin("synthetic")
        .then(Link(f"forensics.detectors.{settings.model.method_name()}"))
        .to_json(),
        details={
            "detector": detector.metadata.to_json(),
            "train": trained,
            "fingerprint": fingerprint,
            "voices": voices.origin,
            "consent": voices.consent,
            "left_out": voices.left_out,
        },
    )


def make_audio_validation_set(
    waves: Sequence[Waveform], methods: Sequence[AudioForgery], *, seed: int, repeats: int = 1
) -> AudioValidationSet:
    """Forge some recordings deterministically, and return them with their real twins."""
    fakes, twins, groups = [], [], []
    for number in range(len(waves)):
        for again in range(repeats):
            rng = np.random.default_rng([seed, number, again, _TEST])
            forged = _forge_pair(waves, number, methods, rng)
            fakes.append(forged.values)
            twins.append(forged.twin)
            groups.append(waves[number].identity)
    count = len(fakes)
    return AudioValidationSet((*fakes, *twins), (*[1] * count, *[0] * count), (*groups, *groups))


def _forge_pair(
    waves: Sequence[Waveform],
    number: int,
    methods: Sequence[AudioForgery],
    rng: np.random.Generator,
) -> ForgedAudio:
    method = methods[int(rng.integers(len(methods)))] if len(methods) > 1 else methods[0]
    wave = waves[number]
    selected = [wave]
    if method.num_waveforms > 1:
        candidates = [
            candidate for candidate in waves if candidate.identity != wave.identity
        ] or list(waves)
        selected.append(candidates[int(rng.integers(len(candidates)))])
    return match_loudness(method.forge(selected, rng))


def _fit_network(
    recipe: ForensicsRecipe,
    settings: DetectorSettings,
    waves: Sequence[Waveform],
    methods: Sequence[AudioForgery],
    length: int,
    job: Job,
) -> tuple[DetectorNetwork, dict[str, Any]]:
    device = choose_device("auto")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = settings.model.build(length)
    load_initial_weights(settings, network)
    network.to(device)
    source = AudioPairDataset(waves, methods, settings, seed=recipe.seed, device=device)

    def objective(model: nn.Module, batch: DetectorBatch) -> Loss:
        if not isinstance(model, DetectorNetwork):
            raise TypeError("the model is not a DetectorNetwork")
        total, parts = model.loss(
            model.forward_features(batch.images), batch.labels, _make_empty_masks(batch)
        )
        return Loss(total, parts)

    fit = settings.train.model_copy(
        update={"batch_size": min(settings.train.batch_size, len(waves))}
    )
    summary = train(network, source, objective, fit.to_train(), job, seed=recipe.seed)
    return network.eval(), asdict(summary)


def _make_empty_masks(batch: DetectorBatch) -> Tensor:
    return batch.masks.to(batch.labels)


def _evaluate_detector(
    recipe: ForensicsRecipe,
    network: DetectorNetwork,
    metadata: DetectorMetadata,
    parts: Mapping[str, Sequence[Waveform]],
    methods: Sequence[AudioForgery],
    job: Job,
) -> tuple[TrainedDetector, dict[str, Any]]:
    """Calibrate on validation speakers, then measure once on test speakers."""
    settings = recipe.detector
    if settings is None:
        raise TypeError("the recipe trains no detector")
    detector = TrainedDetector(network, metadata)
    with job.phase("prove", 3, "steps") as progress:
        validation = make_audio_validation_set(
            parts["validation"], methods, seed=recipe.seed, repeats=_REPEATS
        )
        calibrator = fit_calibrator(
            settings.calibration, validation.labels, detector.logits(validation.sounds)
        )
        works = bool(validation.measure(detector, "clean").low > 0.5)
        progress.advance()
        test = make_audio_validation_set(parts["test"], methods, seed=recipe.seed + 1)
        figures: dict[str, Any] = {
            "auc": {name: test.measure(detector, name).to_json() for name in AUDIO_CONDITIONS}
        }
        logits = detector.logits(test.sounds)
        figures |= measure_calibration(logits, calibrator, test.labels)
        figures["faces"] = {name: len(waves) for name, waves in parts.items()}
        progress.advance()
        metadata = replace(
            metadata,
            calibrator=calibrator,
            is_validated=works and not settings.shuffle_labels,
            figures=figures,
        )
        training_sample = make_audio_validation_set(
            [parts["train"][index] for index in select_evenly(range(len(parts["train"])))],
            methods,
            seed=recipe.seed + 2,
        )
        coded = settings.views.jpeg
        domain = fit_domain(
            TrainedDetector(network, metadata),
            {
                name: LabeledSamples(part.sounds, part.labels, part.groups)
                for name, part in (
                    ("train", training_sample),
                    ("validation", validation),
                    ("test", test),
                )
            },
            summarize_audio_files(parts["train"], coded=coded),
            lambda values, rng: augment_audio_pair(values, values, coded, rng)[0],
            seed=recipe.seed,
        )
        metadata = replace(metadata, domain=domain, audit=_audit(training_sample, recipe.seed))
        progress.advance()
    return TrainedDetector(network, metadata), figures


def _audit(training_sample: AudioValidationSet, seed: int) -> dict[str, Any]:
    """Return the audit of the pairs: traits other than the forgery must not be predictive."""
    traits = [
        {
            "length": float(len(waveform)),
            "loudness": round(float(np.sqrt(np.mean(np.square(waveform)))), 4),
            "offset": round(float(waveform.mean()), 4),
        }
        for waveform in training_sample.sounds
    ]
    audit = audit_pairs(traits, training_sample.labels, training_sample.groups, seed=seed)
    return {"of": "pairs made in memory", **audit.summary()}
