"""Writer of a forgery data set: pairs of a fake and its real twin, masks, and manifest rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from stillroom.forensics.interfaces import AudioForgery, ForgedAudio, ForgedImage, ImageForgery
from stillroom.forensics.labeling.audio import LabeledAudioWriter
from stillroom.forensics.labeling.dataset_writer import ManifestRows, write_dataset
from stillroom.forensics.labeling.image import LabeledImageWriter
from stillroom.forensics.labeling.lab import Lab
from stillroom.forensics.labeling.marks import classify_twin
from stillroom.forensics.media.audio import Waveform
from stillroom.forensics.media.face_types import Face
from stillroom.forensics.synthesis.faces import FaceSource, choose_split
from stillroom.forensics.synthesis.voices import VoiceSource
from stillroom.jobs import Job, atomic_write
from stillroom.provenance import Artifact, make_parent
from stillroom.records import Link, Origin

if TYPE_CHECKING:
    from stillroom.forensics.jobs.audio_set import AudioSetRecipe
    from stillroom.forensics.jobs.image_set import ImageSetRecipe

__all__ = ["PairTask", "PairWriter"]

_Forgery = TypeVar("_Forgery", ImageForgery, AudioForgery)
_Sample = TypeVar("_Sample", Face, Waveform)


@dataclass(frozen=True)
class PairTask(Generic[_Forgery, _Sample]):
    """One forgery: everything that a worker needs, independent of other forgeries.

    ``samples`` are the faces or voices, target first; ``block`` names the identities that go into
    one split together.
    """

    number: int
    method: _Forgery
    samples: tuple[_Sample, ...]
    block: str


@dataclass(frozen=True)
class PairWriter:
    """Writes the pairs of one data set, every file marked by ``marker``.

    ``run`` names the run and enters every watermark: a digest of all that decides the content;
    ``role`` names what ``source`` holds, and ``folder`` where it was read; ``unit`` names the
    items, and ``registry`` the folder of their forgery methods.
    """

    recipe: ImageSetRecipe | AudioSetRecipe
    run: str
    job: Job
    source: FaceSource | VoiceSource
    marker: LabeledImageWriter | LabeledAudioWriter
    role: str
    folder: str | None
    unit: str
    registry: str
    suffix: str
    compression: str

    def state(
        self, task: PairTask[Any, Any], *, is_fake: bool, edit: str = "twin"
    ) -> dict[str, Any]:
        """Return the statements of the marks of a fake, or of a twin made by ``edit``."""
        kind, source_type = classify_twin(self.source.origin)
        if is_fake:
            kind, source_type = "forged", str(task.method.source_type)
        return {
            "generator": task.method.method_name() if is_fake else edit,
            "seed": self.recipe.seed,
            "run": self.run,
            "source_type": source_type,
            "consent": self.source.consent,
            "kind": kind,
            "source": self.source.origin,
            "details": {"number": task.number},
        }

    def write(
        self,
        task: PairTask[Any, Any],
        forged: ForgedImage | ForgedAudio,
        mask: npt.NDArray[np.floating],
        members: Sequence[Any],
        **fields: Any,
    ) -> ManifestRows:
        """Write a forgery, its mask and its real twin; return their manifest rows."""
        name, target, output = f"{task.number:06d}", task.samples[0], self.job.output
        with atomic_write(output / "masks" / f"{name}.npy", "wb") as file:
            np.lib.format.write_array(file, np.rint(mask * 255).astype(np.uint8))
        rows = []
        for label, folder, generated in zip((1, 0), ("fake", "real"), members, strict=True):
            path = output / folder / f"{name}{self.suffix}"
            marks = self.marker.write(generated, path)
            rows.append(
                {
                    "id": f"{folder}-{name}",
                    "path": path.relative_to(output).as_posix(),
                    "label": label,
                    "generator": generated.generator,
                    "source_id": target.name,
                    "identity": target.identity,
                    "others": [sample.identity for sample in task.samples[1:]],
                    "split": choose_split(task.block, self.recipe.seed, self.recipe.split),
                    "mask": f"masks/{name}.npy" if label else None,
                    "compression": self.compression,
                    "consent": self.source.consent or None,
                    "whose": self.source.origin,
                    **fields,
                    "details": dict(forged.details),
                    **marks,
                }
            )
        return rows

    def write_all(
        self,
        lab: Lab,
        make: Callable[[Collection[int]], Iterator[tuple[int, ManifestRows]]],
        *,
        rows_before: int,
        uses: Sequence[str],
    ) -> Artifact:
        """Write all pairs and the manifest, and publish the data set.

        ``uses`` names the forgery methods; the rest is as for ``write_dataset``.
        """
        count, unit, job, folder = self.recipe.count, self.unit, self.job, self.folder
        rows = write_dataset(job, lab, make, count=count, unit=unit, rows_before=rows_before)
        origin = Origin("synthetic")
        for use in uses:
            origin = origin.then(Link(f"forensics.synthesis.{self.registry}.{use}"))
        return job.finish(
            "media",
            parents=[make_parent(self.role, Path(folder), job.out)] if folder else [],
            origin=origin.to_json(),
            details={
                self.role: self.source.origin,
                "consent": self.source.consent,
                unit: len(rows),
                "num_skipped": self.source.num_skipped,
            },
            # Signatures carry their time; the manifest holds the digests of pixels and samples,
            # which are equal in every run.
            is_timed=lambda path: path.endswith((".jpg", ".png", ".wav")),
        )
