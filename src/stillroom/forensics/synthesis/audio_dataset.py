"""Forged audio dataset: each item with its mask, its real twin, and its marks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

from stillroom.forensics.interfaces import AudioForgery, ForgedAudio
from stillroom.forensics.labeling.audio import GeneratedAudio, LabeledAudioWriter
from stillroom.forensics.labeling.dataset_writer import ManifestRows
from stillroom.forensics.labeling.lab import open_lab
from stillroom.forensics.media.audio import SAMPLE_RATE, Waveform
from stillroom.forensics.modalities.audio import match_loudness
from stillroom.forensics.synthesis.pair_writer import PairTask, PairWriter
from stillroom.forensics.synthesis.pairing import pair_identities
from stillroom.forensics.synthesis.voices import VoiceSource, open_voices
from stillroom.jobs import Job
from stillroom.provenance import Artifact, digest_text
from stillroom.recipes import dump_recipe

if TYPE_CHECKING:
    from stillroom.forensics.jobs.audio_set import AudioSetRecipe

__all__ = ["build_audio_dataset"]

_MASK_RATE = 100  # mask values per second


def build_audio_dataset(recipe: AudioSetRecipe, job: Job) -> Artifact:
    """Build the data set, every file marked by ``LabeledAudioWriter``.

    Raises:
        DataError: If there are no voices, or no consent for them.
        IntegrityError: If a file lacks a mark.
        Cancelled: If the user stopped it; ``--resume`` continues to the same samples.
    """
    lab = open_lab()
    rows_before = lab.ledger.verify()
    uses = [method.method_name() for method in recipe.forgeries]
    needed = max(method.num_waveforms for method in recipe.forgeries)
    voices = open_voices(
        recipe.voices,
        uses,
        seconds=recipe.seconds,
        seed=recipe.seed,
        count=max(recipe.count, 3 * needed),
        warn=job.warn,
    )
    marker = LabeledAudioWriter(lab, snr=recipe.watermark.snr)
    run = digest_text(dump_recipe(recipe))[:16]
    folder = None if recipe.voices.type == "drawn" else recipe.voices.folder
    names = ("voices", folder, "sounds", "audio_forgeries", ".wav", "wav")
    writer = PairWriter(recipe, run, job, voices, marker, *names)

    def make(done: Collection[int]) -> Iterator[tuple[int, ManifestRows]]:
        for task in _tasks(recipe, voices, needed):
            if task.number not in done:
                rng = np.random.default_rng([recipe.seed, task.number, 0x50F])
                forged = match_loudness(task.method.forge(task.samples, rng))
                yield task.number, _write(task, forged, writer)

    return writer.write_all(lab, make, rows_before=rows_before, uses=uses)


def _tasks(
    recipe: AudioSetRecipe, voices: VoiceSource, needed: int
) -> Iterator[PairTask[AudioForgery, Waveform]]:
    people = [wave.identity for wave in voices.waves]
    cast = pair_identities(people, min(needed, len(set(people))))
    for number in range(recipe.count):
        indices, block = cast.choose(number)
        rng = np.random.default_rng([recipe.seed, number, 0x50E])
        method = recipe.forgeries[int(rng.integers(len(recipe.forgeries)))]
        waves = tuple(voices.waves[index] for index in indices)
        if len(waves) < method.num_waveforms:  # a single speaker: use another of their recordings
            waves = (*waves, voices.waves[(number + 1) % len(voices.waves)])
        yield PairTask(number, method, waves[: method.num_waveforms], block)


def _write(
    task: PairTask[AudioForgery, Waveform], forged: ForgedAudio, writer: PairWriter
) -> ManifestRows:
    """Write a forged waveform, its mask, (1, N) at ``_MASK_RATE``, and its real twin."""
    step = SAMPLE_RATE // _MASK_RATE
    mask = forged.mask[: len(forged.mask) // step * step].reshape(-1, step).mean(axis=1)
    members = [
        GeneratedAudio(samples, **writer.state(task, is_fake=is_fake))
        for samples, is_fake in ((forged.samples, True), (forged.twin, False))
    ]
    return writer.write(task, forged, mask[None], members)
