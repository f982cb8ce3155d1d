"""Audio detector training: voices, their forgeries, and the conditions of recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from stillroom.evaluate import Metric
from stillroom.forensics.benchmark.audit import audit_pairs
from stillroom.forensics.benchmark.metrics import bootstrap_auc
from stillroom.forensics.inference.domain import FileTraits
from stillroom.forensics.inference.trained_detector import DetectorMetadata, TrainedDetector
from stillroom.forensics.interfaces import AudioForgery, ForgedAudio
from stillroom.forensics.media.audio import SAMPLE_RATE, AudioSamples, Waveform
from stillroom.forensics.media.augmentation import (
    AUDIO_CONDITIONS,
    augment_audio_pair,
    match_loudness,
)
from stillroom.forensics.recipe import AudioSettings, ForensicsRecipe
from stillroom.forensics.settings import DetectorSettings
from stillroom.forensics.synthesis.faces import split_identities
from stillroom.forensics.synthesis.voices import open_voices
from stillroom.forensics.training.model_card import write_audio_model_card
from stillroom.forensics.training.pairs import DetectorBatch, PairDataset, choose_forgery
from stillroom.forensics.training.train_detector import ModalityData
from stillroom.forensics.training.validation import Perturbation, summarize_audio_files
from stillroom.jobs import Job

__all__ = [
    "AudioData",
    "AudioPairDataset",
    "AudioValidationSet",
    "make_audio_validation_set",
    "open_audio_data",
]

_TEST_STREAM = 0x7E5D


@dataclass(frozen=True, eq=False)
class AudioValidationSet:
    """Waveforms with labels and speakers; fakes first."""

    samples: tuple[AudioSamples, ...]
    labels: tuple[int, ...]
    groups: tuple[str, ...]

    def measure(self, detector: TrainedDetector, name: str) -> Metric:
        """Return the area under the curve under one of ``AUDIO_CONDITIONS``."""
        change = AUDIO_CONDITIONS[name]
        scores = detector.logits([change(waveform) for waveform in self.samples])
        return bootstrap_auc(self.labels, scores, self.groups, name=name)


class AudioPairDataset(PairDataset):
    """Training pairs of waveforms."""

    stream = 0x50D

    @override
    def draw(self, number: int, rng: np.random.Generator) -> tuple[AudioSamples, AudioSamples]:
        forged = _forge_pair(self.samples, number, self.forgeries, rng)
        return augment_audio_pair(forged.values, forged.twin, self.settings.views.jpeg, rng)

    @override
    def collate(
        self, pairs: Sequence[tuple[AudioSamples, AudioSamples]], names: Sequence[str]
    ) -> DetectorBatch:
        count = len(pairs)
        waveforms = np.stack([pair[member] for member in (0, 1) for pair in pairs])
        return DetectorBatch(
            torch.from_numpy(waveforms).to(self.device),
            torch.cat([torch.ones(count), torch.zeros(count)]).to(self.device),
            torch.zeros(2 * count).to(self.device),
            tuple(names),
        )


@dataclass(frozen=True, eq=False)
class AudioData(ModalityData):
    """Waveforms of one length."""

    source: AudioSettings

    role = "voices"
    nouns = ("waveforms", "speaker", "speakers")
    pairs = AudioPairDataset

    @override
    def forge(self, samples: Sequence[Waveform], seed: int, repeats: int = 1) -> AudioValidationSet:
        return make_audio_validation_set(samples, self.forgeries, seed=seed, repeats=repeats)

    @override
    def find_limits(
        self, detector: TrainedDetector, validation: AudioValidationSet
    ) -> tuple[int, int, bool]:
        return 0, 0, bool(validation.measure(detector, "clean").low > 0.5)

    @override
    def measure_conditions(
        self, detector: TrainedDetector, test: AudioValidationSet
    ) -> dict[str, Any]:
        return {name: test.measure(detector, name).to_json() for name in AUDIO_CONDITIONS}

    @override
    def summarize_files(self, training_sample: AudioValidationSet) -> FileTraits:
        return summarize_audio_files(self.split("train"), coded=self.settings.views.jpeg)

    @override
    def make_perturbations(self, metadata: DetectorMetadata) -> tuple[Perturbation, None]:
        coded = self.settings.views.jpeg
        return lambda values, rng: augment_audio_pair(values, values, coded, rng)[0], None

    @override
    def audit(self, training_sample: AudioValidationSet) -> dict[str, Any]:
        traits = [
            {
                "length": float(len(waveform)),
                "loudness": round(float(np.sqrt(np.mean(np.square(waveform)))), 4),
                "offset": round(float(waveform.mean()), 4),
            }
            for waveform in training_sample.samples
        ]
        audit = audit_pairs(traits, training_sample.labels, training_sample.groups, seed=self.seed)
        return {"of": "pairs made in memory", **audit.summary()}

    @override
    def write_card(
        self, folder: Path, metadata: DetectorMetadata, figures: Mapping[str, Any]
    ) -> None:
        write_audio_model_card(folder, metadata, figures, self.source)


def open_audio_data(
    recipe: ForensicsRecipe, settings: DetectorSettings, sound: AudioSettings, job: Job
) -> AudioData:
    """Open the voices of a training; a hash of the name assigns each speaker to one split.

    Raises:
        DataError: If a split is empty, or there is no consent for the voices.
    """
    uses = tuple(dict.fromkeys(method.method_name() for method in sound.methods))
    voices = open_voices(sound, uses, seed=recipe.seed, count=max(recipe.count, 9), say=job.say)
    return AudioData(
        settings=settings,
        seed=recipe.seed,
        samples=voices.waves,
        splits=split_identities([wave.identity for wave in voices.waves], recipe, "voices"),
        forgeries=sound.methods,
        generators=uses,
        name=Path(sound.folder).resolve().name if sound.folder else "drawn voices",
        folder=sound.folder,
        origin=voices.origin,
        consent=voices.consent,
        left_out=voices.left_out,
        input_size=round(sound.seconds * SAMPLE_RATE),
        size=SAMPLE_RATE,
        margin=1.0,
        source=sound,
    )


def make_audio_validation_set(
    waves: Sequence[Waveform], methods: Sequence[AudioForgery], *, seed: int, repeats: int = 1
) -> AudioValidationSet:
    """Forge some recordings deterministically, and return them with their real twins."""
    fakes, twins, groups = [], [], []
    for number in range(len(waves)):
        for again in range(repeats):
            rng = np.random.default_rng([seed, number, again, _TEST_STREAM])
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
    method, selected = choose_forgery(waves, number, methods, rng)
    return match_loudness(method.forge(selected, rng))
