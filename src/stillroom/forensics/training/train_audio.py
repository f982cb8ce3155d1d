"""Audio detector training: data of voices and forgeries, for ``train_detector``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from typing_extensions import override

from stillroom.forensics.inference.domain import FileTraits
from stillroom.forensics.inference.trained_detector import DetectorMetadata, TrainedDetector
from stillroom.forensics.interfaces import AudioForgery, ForgedAudio
from stillroom.forensics.media.audio import SAMPLE_RATE, AudioSamples, Waveform
from stillroom.forensics.modalities.audio import (
    AudioModality,
    augment_audio_pair,
    match_loudness,
    measure_bandwidth,
)
from stillroom.forensics.modalities.interfaces import Perturbation
from stillroom.forensics.synthesis.faces import split_identities
from stillroom.forensics.synthesis.voices import open_voices
from stillroom.forensics.training.pairs import DetectorBatch, PairDataset, choose_forgery
from stillroom.forensics.training.train_detector import ModalityData, describe_source
from stillroom.forensics.training.validation import LabeledSamples, make_labeled_samples
from stillroom.jobs import Job

if TYPE_CHECKING:
    from stillroom.forensics.jobs.audio_detector import AudioDetectorRecipe

__all__ = ["AudioData", "AudioPairDataset", "make_audio_validation_set", "open_audio_data"]

_TEST_STREAM = 0x7E5D


class AudioPairDataset(PairDataset):
    """Training pairs of waveforms."""

    recipe: AudioDetectorRecipe

    stream = 0x50D

    @override
    def draw(self, number: int, rng: np.random.Generator) -> tuple[AudioSamples, AudioSamples]:
        forged = _forge_pair(self.samples, number, self.forgeries, rng)
        coded = self.recipe.augmentation.codec_probability
        return augment_audio_pair(forged.samples, forged.twin, coded, rng)

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

    recipe: AudioDetectorRecipe
    modality: AudioModality

    nouns = ("waveforms", "speaker", "speakers")
    pairs = AudioPairDataset

    @override
    def forge(self, samples: Sequence[Waveform], seed: int, repeats: int = 1) -> LabeledSamples:
        return make_audio_validation_set(samples, self.forgeries, seed=seed, repeats=repeats)

    @override
    def find_limits(
        self, detector: TrainedDetector, validation: LabeledSamples
    ) -> tuple[AudioModality, bool]:
        clean = validation.measure(detector, lambda waveform: waveform, "clean")
        return self.modality, bool(clean.low > 0.5)

    @override
    def summarize_files(self, training_sample: LabeledSamples) -> FileTraits:
        waves: list[Waveform] = self.split("train")
        codings = {coding for wave in waves for coding in wave.codings}
        if codings and self.recipe.augmentation.codec_probability:
            codings |= {"mp3", "aac"}
        widest = max(measure_bandwidth(wave.samples) for wave in waves)
        return FileTraits((), widest, tuple(sorted(codings)))

    @override
    def make_perturbations(
        self, metadata: DetectorMetadata, read: AudioModality
    ) -> tuple[Perturbation, None]:
        coded = self.recipe.augmentation.codec_probability
        return lambda samples, rng: augment_audio_pair(samples, samples, coded, rng)[0], None

    @override
    def audit(self, training_sample: LabeledSamples) -> dict[str, Any]:
        traits = [
            {
                "length": float(len(waveform)),
                "loudness": round(float(np.sqrt(np.mean(np.square(waveform)))), 4),
                "offset": round(float(waveform.mean()), 4),
            }
            for waveform in training_sample.samples
        ]
        return self.audit_traits(traits, training_sample)


def open_audio_data(recipe: AudioDetectorRecipe, job: Job) -> AudioData:
    """Open the voices of a training; a hash of the name assigns each speaker to one split.

    Raises:
        DataError: If a split is empty, or there is no consent for the voices.
    """
    names = tuple(dict.fromkeys(method.method_name() for method in recipe.forgeries))
    voices = open_voices(
        recipe.voices,
        names,
        seconds=recipe.seconds,
        seed=recipe.seed,
        count=recipe.count,
        warn=job.warn,
    )
    speakers = [wave.identity for wave in voices.waves]
    return AudioData(
        recipe=recipe,
        modality=AudioModality(round(recipe.seconds * SAMPLE_RATE)),
        samples=voices.waves,
        splits=split_identities(speakers, recipe.seed, recipe.split, "voices"),
        forgeries=recipe.forgeries,
        generators=names,
        origin=voices.origin,
        consent=voices.consent,
        num_skipped=voices.num_skipped,
        **describe_source(recipe.voices, "voices"),
    )


def make_audio_validation_set(
    waves: Sequence[Waveform], methods: Sequence[AudioForgery], *, seed: int, repeats: int = 1
) -> LabeledSamples:
    """Forge some recordings deterministically, and return them with their real twins."""

    def forge(
        number: int, rng: np.random.Generator
    ) -> tuple[AudioSamples, AudioSamples, AudioSamples]:
        forged = _forge_pair(waves, number, methods, rng)
        return forged.samples, forged.twin, forged.mask

    return make_labeled_samples(waves, forge, seed=seed, repeats=repeats, stream=_TEST_STREAM)


def _forge_pair(
    waves: Sequence[Waveform],
    number: int,
    methods: Sequence[AudioForgery],
    rng: np.random.Generator,
) -> ForgedAudio:
    method, selected = choose_forgery(waves, number, methods, rng)
    return match_loudness(method.forge(selected, rng))
