"""Forged audio dataset: each item with its mask, its real twin, and its marks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.forensics.extras import require_packages
from stillroom.forensics.interfaces import AudioForgery, ForgedAudio
from stillroom.forensics.labeling.dataset_writer import ManifestRows, write_dataset
from stillroom.forensics.labeling.lab import open_lab
from stillroom.forensics.labeling.marks import classify_twin
from stillroom.forensics.labeling.writers import GeneratedAudio, LabeledAudioWriter
from stillroom.forensics.media.audio import SAMPLE_RATE, Waveform
from stillroom.forensics.media.augmentation import match_loudness
from stillroom.forensics.recipe import AudioSettings, ForensicsRecipe
from stillroom.forensics.synthesis.faces import choose_split
from stillroom.forensics.synthesis.pairing import IdentityPairing, pair_identities
from stillroom.forensics.synthesis.voices import VoiceSource, open_voices
from stillroom.jobs import Job, atomic_write
from stillroom.provenance import Artifact, digest_text, make_parent
from stillroom.recipes import dump_recipe
from stillroom.records import Link, Origin

__all__ = ["build_audio_dataset"]

_MASK_RATE = 100  # mask values per second


@dataclass(frozen=True)
class _Task:
    number: int
    method: AudioForgery
    waves: tuple[Waveform, ...]
    block: str


def build_audio_dataset(recipe: ForensicsRecipe, sound: AudioSettings, job: Job) -> Artifact:
    """Build the data set, every file marked by ``LabeledAudioWriter``.

    Raises:
        DataError: If there are no voices, or no consent for them.
        IntegrityError: If a file lacks a mark.
        Cancelled: If the user stopped it; ``--resume`` continues to the same samples.
    """
    require_packages("av", "c2pa", "cryptography")
    lab = open_lab()
    rows_before = lab.ledger.verify()
    uses = [method.method_name() for method in sound.methods]
    needed = max(method.num_waveforms for method in sound.methods)
    voices = open_voices(
        sound, uses, seed=recipe.seed, count=max(recipe.count, 3 * needed), say=job.say
    )
    marker = LabeledAudioWriter(lab, snr=sound.snr)
    name = digest_text(dump_recipe(recipe.model_copy(update={"workers": 1})))[:16]

    def make(done: Collection[int]) -> Iterator[tuple[int, ManifestRows]]:
        for task in _tasks(recipe, sound, voices, needed):
            if task.number not in done:
                rng = np.random.default_rng([recipe.seed, task.number, 0x50F])
                forged = match_loudness(task.method.forge(task.waves, rng))
                yield task.number, _write(task, forged, voices, recipe, name, marker, job)

    rows = write_dataset(job, lab, make, count=recipe.count, unit="sounds", rows_before=rows_before)
    folder = [make_parent("voices", Path(sound.folder), job.out)] if sound.folder else []
    origin = Origin("synthetic")
    for use in uses:
        origin = origin.then(Link(f"forensics.synthesis.audio_forgeries.{use}"))
    return job.finish(
        "media",
        parents=folder,
        origin=origin.to_json(),
        details={
            "voices": voices.origin,
            "consent": voices.consent,
            "sounds": len(rows),
            "left_out": voices.left_out,
        },
        # Signatures carry their time; the manifest holds the digest of the samples.
        is_timed=lambda path: path.endswith(".wav"),
    )


def _tasks(
    recipe: ForensicsRecipe, sound: AudioSettings, voices: VoiceSource, needed: int
) -> Iterator[_Task]:
    people = [wave.identity for wave in voices.waves]
    needed = min(needed, len(set(people)))
    cast: IdentityPairing = pair_identities(people, needed)
    for number in range(recipe.count):
        indices, block = cast.choose(number)
        rng = np.random.default_rng([recipe.seed, number, 0x50E])
        method = sound.methods[int(rng.integers(len(sound.methods)))]
        waves = tuple(voices.waves[index] for index in indices)
        if len(waves) < method.num_waveforms:  # a single speaker: use another of their recordings
            waves = (*waves, voices.waves[(number + 1) % len(voices.waves)])
        yield _Task(number, method, waves[: method.num_waveforms], block)


def _write(
    task: _Task,
    forged: ForgedAudio,
    voices: VoiceSource,
    recipe: ForensicsRecipe,
    run: str,
    marker: LabeledAudioWriter,
    job: Job,
) -> list[dict[str, Any]]:
    """Write a forged waveform, its mask and its real twin; return their manifest rows."""
    name, wave = f"{task.number:06d}", task.waves[0]
    step = SAMPLE_RATE // _MASK_RATE
    mask = forged.mask[: len(forged.mask) // step * step].reshape(-1, step).mean(axis=1)
    with atomic_write(job.output / "masks" / f"{name}.npy", "wb") as file:
        np.lib.format.write_array(file, np.rint(mask * 255).astype(np.uint8)[None])
    rows = []
    for label, folder in ((1, "fake"), (0, "real")):
        kind, source = classify_twin(voices.origin)
        generator = "twin"
        if label:
            kind, source = "forged", str(task.method.source_type)
            generator = task.method.method_name()
        generated = GeneratedAudio(
            forged.values if label else forged.twin,
            generator,
            recipe.seed,
            run,
            source,
            consent=voices.consent,
            kind=kind,
            source=voices.origin,
            details={"number": task.number},
        )
        path = job.output / folder / f"{name}.wav"
        marks = marker.write(generated, path)
        rows.append(
            {
                "id": f"{folder}-{name}",
                "path": path.relative_to(job.output).as_posix(),
                "label": label,
                "generator": generator,
                "source_id": wave.name,
                "identity": wave.identity,
                "others": [wave.identity for wave in task.waves[1:]],
                "split": choose_split(task.block, recipe.seed, recipe.split),
                "mask": f"masks/{name}.npy" if label else None,
                "compression": "wav",
                "consent": voices.consent or None,
                "whose": voices.origin,
                "details": dict(forged.details),
                **marks,
            }
        )
    return rows
