"""The ``forensics`` job: build a labeled forgery set or train a detector."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.forensics.extras import require_packages
from stillroom.forensics.recipe import ForensicsRecipe
from stillroom.forensics.synthesis.pairing import IdentityPairing, pair_identities
from stillroom.jobs import Estimate, Job, atomic_write
from stillroom.provenance import Artifact, digest_text, make_parent
from stillroom.recipes import dump_recipe
from stillroom.records import Link, Origin

if TYPE_CHECKING:
    from stillroom.forensics.interfaces import ForgedImage
    from stillroom.forensics.labeling.dataset_writer import ManifestRows
    from stillroom.forensics.labeling.writers import GeneratedImage, LabeledImageWriter
    from stillroom.forensics.media.face import Face
    from stillroom.forensics.settings import DetectorSettings
    from stillroom.forensics.synthesis.faces import FaceSource

__all__ = ["estimate", "run"]

_SECONDS_EACH = 0.12
_SECONDS_LEARNED = 0.035
_SECONDS_FORGED = 0.01
_SECONDS_SOUND = 0.018
# Audio detectors, by name or size: seconds and bytes per second of training audio.
_AUDIO_DETECTOR_COSTS = {
    "lfcc": (0.0045, 3_100_000),
    "tiny": (0.25, 67_000_000),
    "light": (0.58, 136_000_000),
    "full": (0.65, 160_000_000),
}
_TASKS_PER_WORKER = 8


@dataclass(frozen=True)
class _Task:
    """One forgery: everything that a worker needs, independent of other forgeries.

    ``block`` names the identities that go into one split together.
    """

    number: int
    faces: tuple[Face, ...]
    recipe: ForensicsRecipe
    block: str


def run(recipe: ForensicsRecipe, job: Job) -> Artifact:
    """Build the data set, every image marked by ``LabeledImageWriter``, or train the detector.

    Raises:
        DataError: If there are no faces, or no consent for them.
        IntegrityError: If a file lacks a mark.
        Cancelled: If the user stopped it; ``--resume`` continues to the same pixels.
    """
    if recipe.detector is not None:
        from stillroom.forensics.training.train_image import train_detector

        return train_detector(recipe, job)
    if recipe.sound is not None:
        from stillroom.forensics.synthesis.audio_dataset import build_audio_dataset

        return build_audio_dataset(recipe, recipe.sound, job)
    require_packages("cv2", "c2pa", "cryptography", "PIL")
    from stillroom.forensics.labeling.dataset_writer import write_dataset
    from stillroom.forensics.labeling.lab import open_lab
    from stillroom.forensics.labeling.writers import LabeledImageWriter
    from stillroom.forensics.synthesis.faces import open_faces

    lab = open_lab()
    rows_before = lab.ledger.verify()
    uses = [recipe.method.method_name(), *(edit.method_name() for edit in recipe.edits)]
    bases = open_faces(
        recipe.faces,
        uses,
        seed=recipe.seed,
        count=max(recipe.count, recipe.method.num_faces),
        size=recipe.size,
        say=job.say,
    )
    marker = LabeledImageWriter(lab, psnr=recipe.marking.psnr, quality=recipe.out.quality)

    def make(done: Collection[int]) -> Iterator[tuple[int, ManifestRows]]:
        for task, forged in _forge_all(recipe, bases, done, job):
            yield task.number, _write(task, forged, bases, marker, job.output)

    rows = write_dataset(job, lab, make, count=recipe.count, unit="images", rows_before=rows_before)
    return job.finish(
        "media",
        parents=[make_parent("faces", Path(recipe.faces.folder), job.out)]
        if recipe.faces.folder
        else [],
        origin=Origin("synthetic")
        .then(Link(f"forensics.synthesis.image_forgeries.{recipe.method.method_name()}"))
        .to_json(),
        details={
            "faces": bases.origin,
            "consent": bases.consent,
            "images": len(rows),
            "left_out": bases.left_out,
        },
        # Signatures carry their time; the digests of the pixels, which are equal in every run,
        # are in the manifest.
        is_timed=lambda path: path.endswith((".jpg", ".png")),
    )


def estimate(recipe: ForensicsRecipe) -> Estimate:
    """Estimate the resources of a recipe from the size and number of its images."""
    if recipe.detector is not None:
        return _estimate_learning(recipe, recipe.detector)
    if recipe.sound is not None:
        return _estimate_sounds(recipe, recipe.sound.seconds)
    pixels = recipe.size**2
    share = pixels / 256**2
    return Estimate(
        memory_bytes=200_000_000 + recipe.workers * (120_000_000 + 200 * pixels),
        disk_bytes=int(recipe.count * (2 * pixels + 40_000)),
        seconds=recipe.count * _SECONDS_EACH * (2 * share + 1),
        memory_knob="lower workers",
        disk_knob="lower count or size, or write out.format=jpg",
        basis=f"{recipe.count} fakes and twins of {recipe.size}x{recipe.size} pixels",
    )


def _estimate_sounds(recipe: ForensicsRecipe, seconds: float) -> Estimate:
    """Estimate the resources of an audio data set, as measured with 4 seconds per file."""
    return Estimate(
        memory_bytes=int(250_000_000 + recipe.count * seconds * 64_000),
        disk_bytes=int(recipe.count * (2 * seconds * 32_000 + 40_000)),
        seconds=recipe.count * 0.1 * seconds,
        memory_knob="lower count or sound.seconds",
        disk_knob="lower count or sound.seconds",
        basis=f"{recipe.count} forged sounds and twins of {seconds:g} s",
    )


def _estimate_learning(recipe: ForensicsRecipe, settings: DetectorSettings) -> Estimate:
    """Estimate the resources of training, as measured with the default backbone at 128 pixels."""
    share = (settings.pixels / 128) ** 2
    seconds_each = _SECONDS_LEARNED * share + _SECONDS_FORGED * (recipe.size / 256) ** 2
    size = share * 40_000_000
    unit = f"faces and as many fakes of {settings.pixels}x{settings.pixels} pixels"
    knob = "detector.pixels"
    if recipe.sound is not None:
        share = recipe.sound.seconds
        name = getattr(settings.model, "size", settings.model.method_name())
        seconds_per_second, bytes_per_second = _AUDIO_DETECTOR_COSTS.get(
            name, _AUDIO_DETECTOR_COSTS["full"]
        )
        seconds_each, size = share * (_SECONDS_SOUND + seconds_per_second), share * bytes_per_second
        unit, knob = f"sounds and as many fakes of {share:g} s", "sound.seconds"
    steps = settings.train.count_steps(recipe.count)
    pairs = 2 * settings.train.batch_size
    return Estimate(
        memory_bytes=int(700_000_000 + pairs * size),
        disk_bytes=80_000_000,
        seconds=steps * pairs * seconds_each,
        memory_knob=f"lower detector.train.batch_size or {knob}",
        disk_knob="choose a smaller detector",
        basis=f"{steps} steps of {settings.train.batch_size} {unit}",
    )


def _forge_all(
    recipe: ForensicsRecipe, bases: FaceSource, done: Collection[int], job: Job
) -> Iterator[tuple[_Task, ForgedImage]]:
    """Yield forgeries in order; several workers make them in other processes.

    Tasks are streamed to a cluster's workers a few ahead, since each holds whole faces; marks are
    written here as the forgeries arrive.
    """
    numbers = [number for number in range(recipe.count) if number not in done]
    cast = pair_identities(
        [bases.identity(index) for index in range(len(bases))], recipe.method.num_faces
    )
    tasks = (_make_task(recipe, bases, cast, number) for number in numbers)
    if job.engine.is_remote:
        sent = deque[_Task]()
        for forged in job.engine.stream(
            _ForgeryTask(), _record_tasks(tasks, sent), pause=job.check_cancelled
        ):
            yield sent.popleft(), forged
        return
    if recipe.workers == 1:
        for task in tasks:
            yield task, _forge(task)
        return
    with ProcessPoolExecutor(recipe.workers, mp_context=get_context("spawn")) as pool:
        while batch := list(islice(tasks, _TASKS_PER_WORKER * recipe.workers)):
            yield from zip(batch, pool.map(_forge, batch), strict=True)


@dataclass(frozen=True)
class _ForgeryTask:
    """The work of a cluster's worker."""

    concurrency: int = 1

    def open(self) -> Callable[[Sequence[_Task]], list[ForgedImage]]:
        return lambda tasks: [_forge(task) for task in tasks]


def _record_tasks(tasks: Iterator[_Task], sent: deque[_Task]) -> Iterator[_Task]:
    """Yield tasks, and queue them until their forgeries arrive."""
    for task in tasks:
        sent.append(task)
        yield task


def _make_task(
    recipe: ForensicsRecipe, bases: FaceSource, cast: IdentityPairing, number: int
) -> _Task:
    indices, block = cast.choose(number)
    return _Task(number, tuple(bases[index] for index in indices), recipe, block)


def _forge(task: _Task) -> ForgedImage:
    """Make one forgery; all randomness comes from the recipe's seed and its number."""
    import cv2
    import numpy as np

    from stillroom.forensics.interfaces import ForgedImage
    from stillroom.forensics.media.transforms import preserve_grayscale

    cv2.setNumThreads(1)
    rng = np.random.default_rng([task.recipe.seed, task.number, 0xF0A])
    forged = preserve_grayscale(task.recipe.method.forge(task.faces, rng), task.faces[0].image)
    if not task.recipe.edits:
        return forged
    edit = task.recipe.edits[int(rng.integers(len(task.recipe.edits)))]
    face = task.faces[0]
    twin = edit.edit(type(face)(**{**vars(face), "image": forged.twin}), rng)
    return ForgedImage(
        forged.image, forged.mask, twin, {**forged.details, "edit": edit.method_name()}
    )


def _write(
    task: _Task, forged: ForgedImage, bases: FaceSource, marker: LabeledImageWriter, output: Path
) -> list[dict[str, Any]]:
    """Write a forgery, its mask and its real twin; return their manifest rows."""
    import numpy as np

    from stillroom.forensics.synthesis.faces import choose_split

    recipe, face = task.recipe, task.faces[0]
    name = f"{task.number:06d}"
    with atomic_write(output / "masks" / f"{name}.npy", "wb") as file:
        np.lib.format.write_array(file, np.rint(forged.mask * 255).astype(np.uint8))
    rows = []
    for label, folder in ((1, "fake"), (0, "real")):
        image = _describe(task, forged, bases, label)
        path = output / folder / f"{name}.{recipe.out.format}"
        marks = marker.write(image, path)
        rows.append(
            {
                "id": f"{folder}-{name}",
                "path": path.relative_to(output).as_posix(),
                "label": label,
                "generator": image.generator,
                "source_id": face.name,
                "identity": face.identity,
                "others": [face.identity for face in task.faces[1:]],
                "split": choose_split(task.block, recipe.seed, recipe.split),
                "mask": f"masks/{name}.npy" if label else None,
                "compression": f"{recipe.out.format}-{recipe.out.quality}",
                "consent": bases.consent or None,
                "whose": bases.origin,
                "landmarks": face.landmark_source,
                "details": dict(forged.details),
                **marks,
            }
        )
    return rows


def _describe(task: _Task, forged: ForgedImage, bases: FaceSource, label: int) -> GeneratedImage:
    from stillroom.forensics.labeling.marks import classify_twin
    from stillroom.forensics.labeling.writers import GeneratedImage
    from stillroom.forensics.media.transforms import find_mask_box

    recipe = task.recipe
    path = bases.path(task.number % len(bases))
    method = recipe.method
    kind, source = classify_twin(bases.origin)
    generator = str(forged.details.get("edit", "twin"))
    if label:
        kind, source, generator = "forged", str(method.source_type), method.method_name()
    return GeneratedImage(
        image=forged.image if label else forged.twin,
        generator=generator,
        seed=recipe.seed,
        run=_name_run(recipe),
        source_type=source,
        box=find_mask_box(forged.mask) if label else (0, 0, 0, 0),
        consent=bases.consent,
        kind=kind,
        source=bases.origin,
        parent=None if path is None else _read_parent(path),
        details={"number": task.number},
    )


def _name_run(recipe: ForensicsRecipe) -> str:
    """Return the run's name, which enters every watermark: a digest of all that decides the pixels.

    The number of workers is excluded: it does not affect the pixels, and must not affect the marks.
    """
    return digest_text(dump_recipe(recipe.model_copy(update={"workers": 1})))[:16]


def _read_parent(path: Path) -> tuple[bytes, str] | None:
    """Return the source image of a face, which credentials name as the parent."""
    from stillroom.forensics.media.file_types import detect_file_type

    kind = detect_file_type(path)
    return (path.read_bytes(), kind.mime) if kind is not None and kind.mime else None
