"""Training pairs of fake and real images, forged on the fly or read from a benchmark.

Every pair is a pure function of seed, pass and face: a resumed run forges the same ones, and no
fake is ever written to disk. Real face and fake of one person stand in the same batch.

Each fake is paired with its real twin where the manifest has one of the same source, else with a
real picture of the same split. Splits that share a person, a recording or a picture are refused.
Pictures are cut to a square about their largest face, as ``check`` cuts them; where no face is
found, a square picture is taken whole and another is left out.

A head sways, a mouth opens, eyes blink, light changes: smoothly, and alike in both of a pair. The
forged clip is forged frame by frame, as swaps of videos are: every frame with the same settings,
but with landmarks that were found anew and tremble, so that the seam flickers. No clip leaves
memory.

Source: that frames are forged one by one, and what that leaves over time, is what Sabir et al.
2019, arXiv:1905.00582, section 1, and Zheng et al. 2021, arXiv:2108.06693, section 1, learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.forensics.benchmark.audit import BenchmarkAudit, audit_items, find_leaks
from stillroom.forensics.benchmark.manifest import ManifestItem, find_manifest, read_items
from stillroom.forensics.interfaces import ForgedImage, ImageForgery
from stillroom.forensics.media.augmentation import (
    AugmentedPair,
    augment_clip_pair,
    augment_pair,
    to_channels_first,
)
from stillroom.forensics.media.face import PARTS, Face, Image, Mask, Points, canonical_points
from stillroom.forensics.media.face_detection import FaceFinder, compute_square_side, crop_square
from stillroom.forensics.media.images import load_image
from stillroom.forensics.media.transforms import fit_size, preserve_grayscale, to_uint8, warp_affine
from stillroom.forensics.settings import DetectorSettings
from stillroom.provenance import digest_bytes, digest_json

if TYPE_CHECKING:
    from stillroom.train.distributed import ProcessGroup

__all__ = [
    "BenchmarkForgery",
    "BenchmarkPairs",
    "DetectorBatch",
    "PairDataset",
    "animate_face",
    "forge_animated_face",
    "forge_clip",
    "forge_pair",
    "make_batch",
    "open_benchmark_pairs",
]


_TRAIN_STREAM = 0xDE7


@dataclass(frozen=True, eq=False)
class DetectorBatch:
    """Pictures (B, 3, P, P) in [0, 1], labels (B,), masks (B, P, P); fakes first, then twins.

    Of a detector that looks at clips: (B, T, 3, P, P) and (B, T, P, P).
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    record_ids: tuple[str, ...]

    @property
    def valid(self) -> int:
        """How many pictures there are."""
        return len(self.labels)

    @property
    def tokens(self) -> int:
        """How many pictures there are; the loop counts its pace in them."""
        return len(self.labels)


class PairDataset:
    """Gives the pairs of any step."""

    def __init__(
        self,
        faces: Sequence[Face],
        forgeries: Sequence[ImageForgery],
        settings: DetectorSettings,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Stand over faces; each pass shuffles them."""
        self.faces, self.forgeries, self.settings = faces, forgeries, settings
        self.seed, self.device = seed, device
        self.keeps_pixels = settings.model.keeps_pixels
        self.identity = digest_json(
            [
                [[face.digest, face.name] for face in faces],
                [forgery.model_dump(mode="json") for forgery in forgeries],
                settings.model_dump(mode="json"),
                seed,
            ]
        )

    def __len__(self) -> int:
        """Return how many faces one pass has."""
        return len(self.faces)

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Do nothing: pairs are made as they are loaded."""
        return {}

    def plan(self, step: int) -> list[list[int]]:
        """Return the step's places in the endless row of passes, as one micro-batch."""
        size = min(self.settings.train.batch_size, len(self.faces))
        return [list(range(step * size, step * size + size))]

    def valid(self, group: Sequence[int]) -> int:
        """Return how many pictures a micro-batch has."""
        return 2 * len(group)

    def load(self, group: Sequence[int]) -> DetectorBatch:
        """Forge the pairs of a micro-batch."""
        views, names = [], []
        for place in group:
            turn, offset = divmod(place, len(self.faces))
            order = np.random.default_rng([self.seed, turn, _TRAIN_STREAM]).permutation(
                len(self.faces)
            )
            number = int(order[offset])
            rng = np.random.default_rng([self.seed, turn, number, _TRAIN_STREAM])
            views.append(self._draw(number, rng))
            names.append(self.faces[number].name)
        batch = make_batch(views, names, self.device)
        if not self.settings.shuffle_labels:
            return batch
        labels = torch.tensor([self._lot(name, turn) for turn in (1, 0) for name in names])
        return DetectorBatch(batch.images, labels.to(self.device), batch.masks, batch.record_ids)

    def _draw(self, number: int, rng: np.random.Generator) -> AugmentedPair:
        settings, frames = self.settings, self.settings.model.looks_at
        if frames > 1:
            clip = forge_clip(self.faces, number, self.forgeries, frames, rng)
            return augment_clip_pair(
                clip, settings.views, settings.pixels, rng, keeps_pixels=self.keeps_pixels
            )
        forged = forge_pair(self.faces, number, self.forgeries, rng)
        return augment_pair(
            forged, settings.views, settings.pixels, rng, keeps_pixels=self.keeps_pixels
        )

    def _lot(self, name: str, label: int) -> float:
        """Return a picture's lot, the same in every pass: else there would be nothing to learn."""
        return float(int(digest_json([self.seed, name, label])[:8], 16) % 2)


def forge_pair(
    faces: Sequence[Face], number: int, forgeries: Sequence[ImageForgery], rng: np.random.Generator
) -> ForgedImage:
    """Return a face forged by one of some forgeries, drawn by lot.

    Where a second face is needed, it is of another person if there is one.
    """
    method, given = _choose_forgery(faces, number, forgeries, rng)
    forged = method.forge(given, rng)
    return preserve_grayscale(forged, given[0].image) if method.is_made else forged


def forge_clip(
    faces: Sequence[Face],
    number: int,
    forgeries: Sequence[ImageForgery],
    frames: int,
    rng: np.random.Generator,
) -> list[ForgedImage]:
    """Return a face set in motion and forged frame by frame, as ``forge_pair`` forges one."""
    method, given = _choose_forgery(faces, number, forgeries, rng)
    return forge_animated_face(given, method, frames, rng)


def _choose_forgery(
    faces: Sequence[Face], number: int, forgeries: Sequence[ImageForgery], rng: np.random.Generator
) -> tuple[ImageForgery, list[Face]]:
    method = forgeries[int(rng.integers(len(forgeries)))] if len(forgeries) > 1 else forgeries[0]
    face = faces[number]
    given = [face]
    if method.faces_needed > 1:
        others = [one for one in faces if one.identity != face.identity] or list(faces)
        given.append(others[int(rng.integers(len(others)))])
    return method, given


def make_batch(
    views: Sequence[AugmentedPair], names: Sequence[str], device: torch.device
) -> DetectorBatch:
    """Return views as one batch: all fakes, then all real twins."""
    planes = to_channels_first([view.fake for view in views] + [view.real for view in views])
    masks = np.stack([view.mask for view in views])
    count = len(views)
    labels = torch.cat([torch.ones(count), torch.zeros(count)])
    return DetectorBatch(
        torch.from_numpy(planes).to(device),
        labels.to(device),
        torch.from_numpy(np.concatenate([masks, np.zeros_like(masks)])).to(device),
        tuple(names),
    )


_SPLITS = ("train", "validation", "test")


class BenchmarkForgery(ImageForgery):
    """Gives the fake that a face's pair holds; forges nothing itself."""

    paper: ClassVar[str] = ""
    is_made: ClassVar[bool] = False
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
    """Real faces with their fakes, and which split each is of; fakes that were left out.

    ``audit`` is what the audit of its files found, ``name`` the benchmark's.
    """

    faces: tuple[Face, ...]
    splits: Mapping[str, tuple[int, ...]]
    pairs: BenchmarkForgery
    audit: BenchmarkAudit
    name: str
    left_out: int = 0


def open_benchmark_pairs(
    manifest: Path, size: int, margin: float, say: Callable[[str], None]
) -> BenchmarkPairs:
    """Return the pairs of a manifest.

    Args:
        manifest: The file, or its folder.
        size: Side of the squares.
        margin: That side in sizes of the landmarks' box.
        say: Told of what is left out.

    Raises:
        DataError: If a split has no pair, or a person, recording or picture is in two splits.
    """
    file = find_manifest(manifest)
    items = read_items(file)
    _refuse_leaks(file, find_leaks(items), say, items)
    cut = _SquareCropper(file.parent, size, margin, say)
    faces: list[Face] = []
    splits: dict[str, list[int]] = {name: [] for name in _SPLITS}
    fakes: dict[str, Image] = {}
    for split in _SPLITS:
        real = [item for item in items if item.split == split and not item.label]
        twins = {item.source: item for item in real if item.source}
        forged = [item for item in items if item.split == split and item.label]
        for at, item in enumerate(forged if real else []):
            twin = twins.get(item.source) or real[at % len(real)]
            fake, own = cut.cut(item, split), cut.cut(twin, split)
            if fake is None or own is None:
                continue
            fakes[item.id] = fake.image
            splits[split].append(len(faces))
            faces.append(_make_face(item, twin, own, fake))
    _refuse_leaks(file, cut.leaks())
    empty = [name for name in _SPLITS if not splits[name]]
    if empty:
        raise DataError(
            f"the manifest has no pair of real and fake for {' and '.join(empty)}",
            code="forensics.too-few-faces",
            where=str(file),
            expected="real and fake rows in each of the splits train, validation and test",
            next="stillroom forensics benchmark split MANIFEST --by identity --out SPLIT",
        )
    names = tuple(sorted({item.generator or "unnamed" for item in items if item.label}))
    pairs = BenchmarkForgery(names=names)
    pairs._fakes.update(fakes)  # its own module: pictures are no setting
    fakes_named = sum(item.label for item in items if item.split in _SPLITS)
    left_out = fakes_named - len(faces)
    if left_out:
        say(f"{left_out} of {fakes_named} fakes were left out")
    parts = {name: tuple(rows) for name, rows in splits.items()}
    audit = audit_items([item for item in items if item.split in _SPLITS], file.parent)
    return BenchmarkPairs(tuple(faces), parts, pairs, audit, file.resolve().parent.name, left_out)


def _refuse_leaks(
    file: Path,
    leaks: Sequence[str],
    say: Callable[[str], None] | None = None,
    items: Sequence[ManifestItem] = (),
) -> None:
    """Refuse splits that share something; say where rows do not tell."""
    silent = sum(1 for item in items if item.split and not (item.source or item.people))
    if silent and say is not None:
        say(f"{silent} rows name no source and no person: that no split shares one is not known")
    if leaks:
        raise DataError(
            f"the splits of {file.name} share people or pictures, so that its test would measure "
            f"memory; {len(leaks)} in all, the first: {leaks[0]}",
            code="forensics.leak",
            where=str(file),
            expected="a fake, its real twin, and all of one person or recording in one split",
            next="stillroom forensics benchmark split MANIFEST --by identity --out SPLIT, or by "
            "source",
        )


@dataclass(frozen=True, eq=False)
class _FaceSquare:
    """A square about a face, how many of the file's own pixels it shows, how that is coded."""

    image: Image
    wide: float
    coding: str


@dataclass
class _SquareCropper:
    """Cuts pictures to squares, each file once."""

    folder: Path
    size: int
    margin: float
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._finder = FaceFinder()
        self._kept: dict[str, _FaceSquare | None] = {}
        self._places: dict[str, dict[str, str]] = {}

    def cut(self, item: ManifestItem, split: str) -> _FaceSquare | None:
        if item.path not in self._kept:
            self._kept[item.path] = self._read(item)
        found = self._kept[item.path]
        if found is not None:
            digest = digest_bytes(found.image.tobytes())
            self._places.setdefault(digest, {}).setdefault(split, item.id)
        return found

    def leaks(self) -> list[str]:
        """Return the squares that are the same in two splits, a line each."""
        return [
            f"the picture of {' and '.join(f'{name} ({split})' for split, name in found.items())}"
            " is the same"
            for found in self._places.values()
            if len(found) > 1
        ]

    def _read(self, item: ManifestItem) -> _FaceSquare | None:
        try:
            picture = load_image(self.folder / item.path)
        except DataError as error:
            self.say(f"left out: {error.problems[0].what}")
            return None
        image = picture.image
        height, width = image.shape[:2]
        found = self._finder.find(image)
        if found and found[0].box[2] * self.margin < 0.9 * min(height, width):
            points = self._finder.landmarks(image, found[0])
            cut = crop_square(image, points, self.size, margin=self.margin)[0]
            return _FaceSquare(cut, compute_square_side(points, self.margin), picture.coding)
        if found or abs(height - width) <= 0.02 * width:
            return _FaceSquare(
                fit_size(image, (self.size, self.size)), float(width), picture.coding
            )
        self.say(f"left out: {item.path} shows no face")
        return None


def _make_face(item: ManifestItem, twin: ManifestItem, own: _FaceSquare, fake: _FaceSquare) -> Face:
    image = own.image
    points = np.asarray(canonical_points() * image.shape[0] / 4 + image.shape[0] / 2, np.float32)
    who = twin.identity or item.identity or twin.source or twin.id
    codings = tuple(sorted({own.coding, fake.coding}))
    digest = digest_bytes(image.tobytes() + fake.image.tobytes())
    wide = max(own.wide, fake.wide)
    return Face(image, points, item.id, who, digest, "template", wide, codings)


_SWAY, _TURN, _GROW = 0.02, 2.0, 0.02  # share of the side, degrees, share


_MOUTH, _EYES = 0.035, 0.012  # how far they move, as shares of the side


_LIGHT = 0.03


_JITTER = 0.006  # of the side: how far landmarks of one frame lie from the next one's


Floats = npt.NDArray[np.float64]


def animate_face(face: Face, frames: int, rng: np.random.Generator) -> list[Face]:
    """Return a face in ``frames`` frames of a smooth motion, landmarks moved along."""
    side = face.image.shape[0]
    course = [_make_smooth_path(frames, rng) for _ in range(7)]
    amount = rng.uniform(0, 1, 7)
    noise = float(rng.uniform(0, 2.5))
    found = []
    for at in range(frames):
        dx, dy, turn, grow, mouth, eyes, light = (
            float(course[number][at] * amount[number]) for number in range(7)
        )
        image, points = _deform(face.image, face.landmarks, mouth * _MOUTH, eyes * _EYES)
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), turn * _TURN, 1 + grow * _GROW)
        matrix[:, 2] += np.array([dx, dy]) * _SWAY * side
        moved = warp_affine(image, np.asarray(matrix, dtype=np.float64))
        places = np.asarray(points @ matrix[:, :2].T + matrix[:, 2], dtype=np.float32)
        lit = moved * (1 + light * _LIGHT) + rng.normal(0, noise, moved.shape)
        found.append(replace(face, image=to_uint8(lit), landmarks=places))
    return found


def forge_animated_face(
    faces: Sequence[Face], forgery: ImageForgery, frames: int, rng: np.random.Generator
) -> list[ForgedImage]:
    """Return a clip of the first face, forged frame by frame, each with its real twin.

    Args:
        faces: As the forgery needs them.
        forgery: How each frame is forged; what it draws by lot is the same in all.
        frames: How many.
        rng: Of all chance.
    """
    courses = [animate_face(face, frames, rng) for face in faces]
    lot = int(rng.integers(2**63))
    side = faces[0].image.shape[0]
    found = []
    for at in range(frames):
        given = [course[at] for course in courses]
        tremble = rng.normal(0, _JITTER * side, 2) + rng.normal(
            0, _JITTER / 2 * side, given[0].landmarks.shape
        )
        seen = np.asarray(given[0].landmarks + tremble, dtype=np.float32)
        given[0] = replace(given[0], landmarks=seen)
        forged = forgery.forge(given, np.random.default_rng(lot))
        found.append(preserve_grayscale(forged, given[0].image))
    return found


def _make_smooth_path(frames: int, rng: np.random.Generator) -> Floats:
    """Return a smooth course in [-1, 1]: two slow waves of random phase."""
    time = np.linspace(0, 1, frames)
    phases, speeds = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.3, 2.5, 2)
    waves = np.sin(2 * np.pi * speeds[:, None] * time + phases[:, None])
    return np.asarray(waves.mean(axis=0))


def _deform(image: Image, points: Points, mouth: float, eyes: float) -> tuple[Image, Points]:
    """Open or close mouth and eyes a little: a smooth shift of pixels about each."""
    side = image.shape[0]
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    down = np.zeros((side, side), dtype=np.float32)
    places = np.array(points, dtype=np.float32)
    for name, amount in (("mouth", mouth), ("eye_left", eyes), ("eye_right", eyes)):
        middle = points[PARTS[name]].mean(axis=0)
        reach = max(float(np.ptp(points[PARTS[name], 0])), 2.0) * 0.7
        across, along = columns - middle[0], rows - middle[1]
        weight = np.exp(-(across**2 + along**2) / (2 * reach**2))
        down += weight * along / reach * amount * side
        offset = places - middle
        near = np.exp(-(offset**2).sum(axis=1) / (2 * reach**2))
        places[:, 1] += near * offset[:, 1] / reach * amount * side
    moved = cv2.remap(
        image, columns, rows - down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(moved, dtype=np.uint8), places
