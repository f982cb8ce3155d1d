"""Forged image dataset: each item with its mask, its real twin, and its marks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

from stillroom.forensics.interfaces import ForgedImage, ImageForgery
from stillroom.forensics.labeling.dataset_writer import ManifestRows
from stillroom.forensics.labeling.image import GeneratedImage, LabeledImageWriter
from stillroom.forensics.labeling.lab import open_lab
from stillroom.forensics.media.face_types import Face
from stillroom.forensics.media.file_types import detect_file_type
from stillroom.forensics.media.transforms import find_mask_box, preserve_grayscale
from stillroom.forensics.synthesis.faces import FaceSource, open_faces
from stillroom.forensics.synthesis.pair_writer import PairTask, PairWriter
from stillroom.forensics.synthesis.pairing import IdentityPairing, pair_identities
from stillroom.jobs import Job
from stillroom.jobs.engines import open_processes
from stillroom.provenance import Artifact, digest_text
from stillroom.recipes import dump_recipe

if TYPE_CHECKING:
    from stillroom.forensics.jobs.image_set import ImageSetRecipe

__all__ = ["build_image_dataset"]

ImageTask: TypeAlias = PairTask[ImageForgery, Face]
_TASKS_PER_WORKER = 8


def build_image_dataset(recipe: ImageSetRecipe, job: Job) -> Artifact:
    """Build the data set, every image marked by ``LabeledImageWriter``.

    Raises:
        DataError: If there are no faces, or no consent for them.
        IntegrityError: If a file lacks a mark.
        Cancelled: If the user stopped it; ``--resume`` continues to the same pixels.
    """
    lab = open_lab()
    rows_before = lab.ledger.verify()
    method, faces, output = recipe.forgery.method_name(), recipe.faces, recipe.output
    bases = open_faces(
        faces,
        [method, *(edit.method_name() for edit in recipe.benign_edits)],
        seed=recipe.seed,
        count=max(recipe.count, recipe.forgery.num_faces),
        size=recipe.image_size,
        margin=1.0 if faces.type == "drawn" else faces.face_margin,
        warn=job.warn,
    )
    coding, quality = "png", {}
    if output.format == "jpg":
        coding, quality = f"jpg-{output.quality}", {"quality": output.quality}
    marker = LabeledImageWriter(lab, psnr=recipe.watermark.psnr, **quality)
    # The number of workers must not affect the marks.
    run = digest_text(dump_recipe(recipe.model_copy(update={"workers": 1})))[:16]
    folder = None if faces.type == "drawn" else faces.folder
    names = ("faces", folder, "images", "image_forgeries", f".{output.format}", coding)
    writer = PairWriter(recipe, run, job, bases, marker, *names)

    def make(done: Collection[int]) -> Iterator[tuple[int, ManifestRows]]:
        for task, forged in _forge_all(recipe, bases, done, job):
            yield task.number, _write(task, forged, bases, writer)

    return writer.write_all(lab, make, rows_before=rows_before, uses=[method])


def _forge_all(
    recipe: ImageSetRecipe, bases: FaceSource, done: Collection[int], job: Job
) -> Iterator[tuple[ImageTask, ForgedImage]]:
    """Yield forgeries in order; several workers make them in other processes.

    Tasks are streamed to a cluster's workers a few ahead, since each holds whole faces; marks are
    written here as the forgeries arrive.
    """
    numbers = [number for number in range(recipe.count) if number not in done]
    cast = pair_identities(
        [bases.identity(index) for index in range(len(bases))], recipe.forgery.num_faces
    )
    tasks = (_make_task(recipe, bases, cast, number) for number in numbers)
    if job.engine.is_remote:
        sent = deque[ImageTask]()
        for forged in job.engine.stream(
            _ForgeryTask(recipe), _record_tasks(tasks, sent), pause=job.check_cancelled
        ):
            yield sent.popleft(), forged
        return
    if recipe.workers == 1:
        for task in tasks:
            yield task, _forge(recipe, task)
        return
    with open_processes(recipe.workers, "workers") as pool:
        while batch := list(islice(tasks, _TASKS_PER_WORKER * recipe.workers)):
            yield from zip(batch, pool.map(partial(_forge, recipe), batch), strict=True)


@dataclass(frozen=True)
class _ForgeryTask:
    """The work of a cluster's worker."""

    recipe: ImageSetRecipe
    concurrency: int = 1

    def open(self) -> Callable[[Sequence[ImageTask]], list[ForgedImage]]:
        return lambda tasks: [_forge(self.recipe, task) for task in tasks]


def _record_tasks(tasks: Iterator[ImageTask], sent: deque[ImageTask]) -> Iterator[ImageTask]:
    """Yield tasks, and queue them until their forgeries arrive."""
    for task in tasks:
        sent.append(task)
        yield task


def _make_task(
    recipe: ImageSetRecipe, bases: FaceSource, cast: IdentityPairing, number: int
) -> ImageTask:
    indices, block = cast.choose(number)
    faces = tuple(bases[index] for index in indices)
    return PairTask(number, recipe.forgery, faces, block)


def _forge(recipe: ImageSetRecipe, task: ImageTask) -> ForgedImage:
    """Make one forgery; all randomness comes from the recipe's seed and its number."""
    cv2.setNumThreads(1)
    rng, face = np.random.default_rng([recipe.seed, task.number, 0xF0A]), task.samples[0]
    forged = preserve_grayscale(task.method.forge(task.samples, rng), face.image)
    if not recipe.benign_edits:
        return forged
    edit = recipe.benign_edits[int(rng.integers(len(recipe.benign_edits)))]
    twin = edit.edit(replace(face, image=forged.twin), rng)
    return ForgedImage(
        forged.image, forged.mask, twin, {**forged.details, "edit": edit.method_name()}
    )


def _write(
    task: ImageTask, forged: ForgedImage, bases: FaceSource, writer: PairWriter
) -> ManifestRows:
    """Write a forgery, its mask and its real twin; return their manifest rows."""
    path = bases.path(task.number % len(bases))
    parent = None if path is None else _read_parent(path)
    edit = str(forged.details.get("edit", "twin"))
    members = [
        GeneratedImage(
            image,
            box=find_mask_box(forged.mask) if is_fake else (0, 0, 0, 0),
            parent=parent,
            **writer.state(task, is_fake=is_fake, edit=edit),
        )
        for image, is_fake in ((forged.image, True), (forged.twin, False))
    ]
    landmarks = task.samples[0].landmark_source
    return writer.write(task, forged, forged.mask, members, landmarks=landmarks)


def _read_parent(path: Path) -> tuple[bytes, str] | None:
    """Return the source image of a face, which credentials name as the parent."""
    kind = detect_file_type(path)
    return (path.read_bytes(), kind.mime) if kind is not None and kind.mime else None
