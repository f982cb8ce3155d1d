"""Training pairs of fake and real images, forged on the fly or read from a benchmark.

Each pair is a pure function of seed, pass and face: a resumed run forges the same ones, and no fake
is written to disk. Real and fake of one person are in the same batch.

Benchmark fakes are paired with their real twin where the manifest has one of the same source, else
with a real image of the same split. Splits that share a person, a recording or an image are
refused. Images are cropped to a square around their largest face, as in ``check``; where no face is
found, a square image is used whole, and any other is skipped.

"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.forensics.benchmark.audit import BenchmarkAudit, audit_items, find_leaks
from stillroom.forensics.benchmark.manifest import ManifestItem, find_manifest, read_items
from stillroom.forensics.interfaces import ForgedImage, ImageForgery
from stillroom.forensics.media.face_detection import FaceFinder, compute_square_side, crop_face
from stillroom.forensics.media.face_types import Face, Image, Mask, canonical_points
from stillroom.forensics.media.images import load_image
from stillroom.forensics.media.transforms import fit_size, preserve_grayscale
from stillroom.provenance import digest_bytes, digest_json

if TYPE_CHECKING:
    from stillroom.forensics.jobs.audio_detector import AudioDetectorRecipe
    from stillroom.forensics.jobs.image_detector import ImageDetectorRecipe
    from stillroom.train.distributed import ProcessGroup

    DetectorRecipe: TypeAlias = ImageDetectorRecipe | AudioDetectorRecipe

__all__ = [
    "BenchmarkForgery",
    "BenchmarkPairs",
    "DetectorBatch",
    "PairDataset",
    "choose_forgery",
    "forge_pair",
    "open_benchmark_pairs",
]


@dataclass(frozen=True, eq=False)
class DetectorBatch:
    """Inputs of the network, labels (B,), and forgery masks; fakes first, then twins.

    Images are (B, 3, P, P) in [0, 1] with masks (B, P, P), waveforms (B, N) with masks (B,) of
    zeros.
    """

    inputs: Tensor
    labels: Tensor
    masks: Tensor
    record_ids: tuple[str, ...]

    @property
    def valid(self) -> int:
        """Number of inputs."""
        return len(self.labels)

    @property
    def tokens(self) -> int:
        """Number of inputs, the unit of the training loop's throughput."""
        return len(self.labels)


class PairDataset(ABC):
    """Training pairs of one medium, forged as they are loaded."""

    stream: ClassVar[int]  # of the random numbers

    def __init__(
        self,
        samples: Sequence[Any],
        forgeries: Sequence[Any],
        recipe: DetectorRecipe,
        device: torch.device,
    ) -> None:
        """Wrap the faces or waveforms, which each pass shuffles."""
        self.samples, self.forgeries, self.recipe = samples, forgeries, recipe
        self.seed, self.device = recipe.seed, device
        self.identity = digest_json(
            [
                [[sample.digest, sample.name] for sample in samples],
                [forgery.model_dump(mode="json") for forgery in forgeries],
                recipe.model_dump(mode="json"),
            ]
        )

    @abstractmethod
    def draw(self, number: int, rng: np.random.Generator) -> Any:
        """Forge the pair of a sample, and augment it."""

    @abstractmethod
    def collate(self, pairs: Sequence[Any], names: Sequence[str]) -> DetectorBatch:
        """Collate pairs to one batch: all fakes, then all real twins."""

    def __len__(self) -> int:
        """Return the number of samples per pass."""
        return len(self.samples)

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Do nothing: pairs are forged as they are loaded."""
        return {}

    def plan(self, step: int) -> list[list[int]]:
        """Return the step's positions in the sequence of passes, as one micro-batch."""
        size = min(self.recipe.train.batch_size, len(self.samples))
        return [list(range(step * size, step * size + size))]

    def valid(self, group: Sequence[int]) -> int:
        """Return the number of images or waveforms in a micro-batch."""
        return 2 * len(group)

    def load(self, group: Sequence[int]) -> DetectorBatch:
        """Forge the pairs of a micro-batch."""
        pairs, names, count = [], [], len(self.samples)
        for position in group:
            epoch, offset = divmod(position, count)
            order = np.random.default_rng([self.seed, epoch, self.stream]).permutation(count)
            number = int(order[offset])
            rng = np.random.default_rng([self.seed, epoch, number, self.stream])
            pairs.append(self.draw(number, rng))
            names.append(self.samples[number].name)
        batch = self.collate(pairs, names)
        if not self.recipe.shuffle_labels:
            return batch
        labels = torch.tensor([self._draw_label(name, epoch) for epoch in (1, 0) for name in names])
        return replace(batch, labels=labels.to(self.device))

    def _draw_label(self, name: str, label: int) -> float:
        """Return a sample's random label, equal in every pass: else it could not be learned."""
        return float(int(digest_json([self.seed, name, label])[:8], 16) % 2)


def choose_forgery(
    samples: Sequence[Any], number: int, forgeries: Sequence[Any], rng: np.random.Generator
) -> tuple[Any, list[Any]]:
    """Draw a forgery, and the samples that it needs, target first.

    A second sample, where needed, is of another person if there is one.
    """
    method = forgeries[int(rng.integers(len(forgeries)))] if len(forgeries) > 1 else forgeries[0]
    target = samples[number]
    needed = method.num_faces if isinstance(method, ImageForgery) else method.num_waveforms
    if needed == 1:
        return method, [target]
    others = [sample for sample in samples if sample.identity != target.identity] or samples
    return method, [target, others[int(rng.integers(len(others)))]]


def forge_pair(
    faces: Sequence[Face], number: int, forgeries: Sequence[ImageForgery], rng: np.random.Generator
) -> ForgedImage:
    """Forge a face with one of some forgeries, drawn at random.

    A second face, where needed, is of another person if there is one.
    """
    method, selected = choose_forgery(faces, number, forgeries, rng)
    forged = method.forge(selected, rng)
    return preserve_grayscale(forged, selected[0].image) if method.is_synthesized else forged


_SPLITS = ("train", "validation", "test")


class BenchmarkForgery(ImageForgery):
    """Return the fake of a face's pair from a benchmark; forges nothing itself."""

    paper: ClassVar[str] = ""
    is_synthesized: ClassVar[bool] = False
    names: tuple[str, ...] = ()
    _fakes: dict[str, Image] = PrivateAttr(default_factory=dict)

    @override
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> ForgedImage:
        face = faces[0]
        fake = self._fakes[face.name]
        changed = np.abs(fake.astype(np.int16) - face.image).max(axis=2) > 8
        mask: Mask = changed.astype(np.float32)
        return ForgedImage(fake, mask, face.image, {"known": face.name})


@dataclass(frozen=True)
class BenchmarkPairs:
    """Real faces with their fakes, and the indices of each split.

    ``audit`` is the audit of its files, ``name`` the benchmark's name, ``num_skipped`` the number
    of skipped fakes.
    """

    faces: tuple[Face, ...]
    splits: Mapping[str, tuple[int, ...]]
    pairs: BenchmarkForgery
    audit: BenchmarkAudit
    name: str
    num_skipped: int = 0


def open_benchmark_pairs(
    manifest: Path, size: int, margin: float, warn: Callable[[str], None]
) -> BenchmarkPairs:
    """Read the pairs of a manifest.

    Raises:
        DataError: If a split has no pair, or a person, recording or image is in two splits.
    """
    file = find_manifest(manifest)
    items = read_items(file)
    _refuse_leaks(file, find_leaks(items), warn, items)
    cropper = _SquareCropper(file.parent, size, margin, warn)
    faces: list[Face] = []
    splits: dict[str, list[int]] = {name: [] for name in _SPLITS}
    fakes: dict[str, Image] = {}
    used: set[str] = set()
    for split in _SPLITS:
        real = [item for item in items if item.split == split and not item.label]
        twins = {item.source: item for item in real if item.source}
        forged = [item for item in items if item.split == split and item.label]
        for index, item in enumerate(forged if real else []):
            twin = twins.get(item.source) or real[index % len(real)]
            fake_crop, real_crop = cropper.cut(item, split), cropper.cut(twin, split)
            if fake_crop is None or real_crop is None:
                continue
            fakes[item.id] = fake_crop.image
            used.add(twin.id)
            splits[split].append(len(faces))
            faces.append(_make_face(item, twin, real_crop, fake_crop))
    _refuse_leaks(file, cropper.leaks())
    empty = [name for name in _SPLITS if not splits[name]]
    if empty:
        raise DataError(
            f"the manifest has no pair of real and fake for {' and '.join(empty)}",
            code="forensics.too-few-faces",
            where=str(file),
            expected="real and fake rows in each of the splits train, validation and test",
            next="stillroom forensics benchmark split MANIFEST --by identity --out SPLIT",
        )
    names = tuple(sorted({item.generator or "unnamed generators" for item in items if item.label}))
    pairs = BenchmarkForgery(names=names)
    pairs._fakes.update(fakes)  # private to this module: images are not a setting
    fakes_named = sum(item.label for item in items if item.split in _SPLITS)
    num_skipped = fakes_named - len(faces)
    if num_skipped:
        warn(f"{num_skipped} of {fakes_named} fakes were skipped")
    num_real = sum(item.split in _SPLITS and not item.label for item in items)
    if num_unused := num_real - len(used):
        warn(f"{num_unused} of {num_real} real pictures are not used: each fake is paired with one")
    parts = {name: tuple(rows) for name, rows in splits.items()}
    audit = audit_items([item for item in items if item.split in _SPLITS], file.parent)
    return BenchmarkPairs(tuple(faces), parts, pairs, audit, _name_set(file.resolve()), num_skipped)


def _name_set(manifest: Path) -> str:
    """Return the name of a set: its folder, or the run's, and the manifest's if not the usual."""
    folder = manifest.parent.parent if manifest.parent.name == "output" else manifest.parent
    return folder.name if manifest.name == "manifest.jsonl" else f"{folder.name}/{manifest.name}"


def _refuse_leaks(
    file: Path,
    leaks: Sequence[str],
    warn: Callable[[str], None] | None = None,
    items: Sequence[ManifestItem] = (),
) -> None:
    """Raise for splits that share something; log rows without the data to decide it."""
    silent = sum(1 for item in items if item.split and not (item.source or item.people))
    if silent and warn is not None:
        warn(f"{silent} rows name no source and no person: shared ones cannot be detected")
    if leaks:
        raise DataError(
            f"the splits of {file.name} share people or images, so that the test would measure "
            f"memorization; {len(leaks)} in all, the first: {leaks[0]}",
            code="forensics.leak",
            where=str(file),
            expected="a fake, its real twin, and all files of a person or recording in one split",
            next="stillroom forensics benchmark split MANIFEST --by identity --out SPLIT, or by "
            "source",
        )


@dataclass(frozen=True, eq=False)
class _FaceSquare:
    """A square face crop, its width in source pixels, and the coding of its file."""

    image: Image
    wide: float
    coding: str


@dataclass
class _SquareCropper:
    """Crops images to squares, each file once."""

    folder: Path
    size: int
    margin: float
    warn: Callable[[str], None]

    def __post_init__(self) -> None:
        self._finder = FaceFinder()
        self._kept: dict[str, _FaceSquare | None] = {}
        self._places: dict[str, dict[str, str]] = {}

    def cut(self, item: ManifestItem, split: str) -> _FaceSquare | None:
        if item.path not in self._kept:
            self._kept[item.path] = self._read(item)
        crop = self._kept[item.path]
        if crop is not None:
            digest = digest_bytes(crop.image.tobytes())
            self._places.setdefault(digest, {}).setdefault(split, item.id)
        return crop

    def leaks(self) -> list[str]:
        """Return crops that are identical in two splits, a line each."""
        return [
            f"the picture of {' and '.join(f'{name} ({split})' for split, name in ids.items())}"
            " is the same"
            for ids in self._places.values()
            if len(ids) > 1
        ]

    def _read(self, item: ManifestItem) -> _FaceSquare | None:
        try:
            picture = load_image(self.folder / item.path)
        except DataError as error:
            self.warn(f"skipped: {error.problems[0].what}")
            return None
        image = picture.image
        height, width = image.shape[:2]
        detections = self._finder.find(image)
        if detections and detections[0].box[2] * self.margin < 0.9 * min(height, width):
            points = self._finder.landmarks(image, detections[0])
            cut = crop_face(image, points, self.size, margin=self.margin)[0]
            return _FaceSquare(cut, compute_square_side(points, self.margin), picture.coding)
        if detections or abs(height - width) <= 0.02 * width:
            return _FaceSquare(
                fit_size(image, (self.size, self.size)), float(width), picture.coding
            )
        self.warn(f"skipped: {item.path} shows no face")
        return None


def _make_face(
    item: ManifestItem, twin: ManifestItem, real: _FaceSquare, fake: _FaceSquare
) -> Face:
    image = real.image
    points = np.asarray(canonical_points() * image.shape[0] / 4 + image.shape[0] / 2, np.float32)
    identity = twin.identity or item.identity or twin.source or twin.id
    codings = tuple(sorted({real.coding, fake.coding}))
    digest = digest_bytes(image.tobytes() + fake.image.tobytes())
    wide = max(real.wide, fake.wide)
    return Face(image, points, item.id, identity, digest, "template", wide, codings)
