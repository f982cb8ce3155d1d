"""Pairs that are forged already: a benchmark's manifest as what a detector learns from.

Each fake is paired with its real twin where the manifest has one of the same source, else with a
real picture of the same split. Splits that share a person, a recording or a picture are refused.
Pictures are cut to a square about their largest face, as ``check`` cuts them; where no face is
found, a square picture is taken whole and another is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import PrivateAttr
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.forensics.audits import Audit, audit_items, find_leaks
from stillroom.forensics.face import Face, Image, Mask, canonical_points
from stillroom.forensics.faces import FaceFinder, crop_square, square_side
from stillroom.forensics.items import Item, find_manifest, read_items
from stillroom.forensics.method import Forged, Forgery
from stillroom.forensics.pictures import load_picture
from stillroom.forensics.treatments import fit_size
from stillroom.provenance import digest_bytes

__all__ = ["Known", "KnownPairs", "open_known"]

_SPLITS = ("train", "validation", "test")


class KnownPairs(Forgery):
    """Gives the fake that a face's pair holds; forges nothing itself."""

    paper: ClassVar[str] = ""
    is_made: ClassVar[bool] = False
    names: tuple[str, ...] = ()
    _fakes: dict[str, Image] = PrivateAttr(default_factory=dict)

    @override
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> Forged:
        face = faces[0]
        fake = self._fakes[face.name]
        changed = np.abs(fake.astype(np.int16) - face.image).max(axis=2) > 8
        mask: Mask = changed.astype(np.float32)
        return Forged(fake, mask, face.image, {"known": face.name})


@dataclass(frozen=True)
class Known:
    """Real faces with their fakes, and which split each is of; fakes that were left out.

    ``audit`` is what the audit of its files found, ``name`` the benchmark's.
    """

    faces: tuple[Face, ...]
    splits: Mapping[str, tuple[int, ...]]
    pairs: KnownPairs
    audit: Audit
    name: str
    left_out: int = 0


def open_known(manifest: Path, size: int, margin: float, say: Callable[[str], None]) -> Known:
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
    cut = _Cutter(file.parent, size, margin, say)
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
            faces.append(_face(item, twin, own, fake))
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
    pairs = KnownPairs(names=names)
    pairs._fakes.update(fakes)  # its own module: pictures are no setting
    fakes_named = sum(item.label for item in items if item.split in _SPLITS)
    left_out = fakes_named - len(faces)
    if left_out:
        say(f"{left_out} of {fakes_named} fakes were left out")
    parts = {name: tuple(rows) for name, rows in splits.items()}
    audit = audit_items([item for item in items if item.split in _SPLITS], file.parent)
    return Known(tuple(faces), parts, pairs, audit, file.resolve().parent.name, left_out)


def _refuse_leaks(
    file: Path,
    leaks: Sequence[str],
    say: Callable[[str], None] | None = None,
    items: Sequence[Item] = (),
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
class _Square:
    """A square about a face, how many of the file's own pixels it shows, how that is coded."""

    image: Image
    wide: float
    coding: str


@dataclass
class _Cutter:
    """Cuts pictures to squares, each file once."""

    folder: Path
    size: int
    margin: float
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._finder = FaceFinder()
        self._kept: dict[str, _Square | None] = {}
        self._places: dict[str, dict[str, str]] = {}

    def cut(self, item: Item, split: str) -> _Square | None:
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

    def _read(self, item: Item) -> _Square | None:
        try:
            picture = load_picture(self.folder / item.path)
        except DataError as error:
            self.say(f"left out: {error.problems[0].what}")
            return None
        image = picture.image
        height, width = image.shape[:2]
        found = self._finder.find(image)
        if found and found[0].box[2] * self.margin < 0.9 * min(height, width):
            points = self._finder.landmarks(image, found[0])
            cut = crop_square(image, points, self.size, margin=self.margin)[0]
            return _Square(cut, square_side(points, self.margin), picture.coding)
        if found or abs(height - width) <= 0.02 * width:
            return _Square(fit_size(image, (self.size, self.size)), float(width), picture.coding)
        self.say(f"left out: {item.path} shows no face")
        return None


def _face(item: Item, twin: Item, own: _Square, fake: _Square) -> Face:
    image = own.image
    points = np.asarray(canonical_points() * image.shape[0] / 4 + image.shape[0] / 2, np.float32)
    who = twin.identity or item.identity or twin.source or twin.id
    codings = tuple(sorted({own.coding, fake.coding}))
    digest = digest_bytes(image.tobytes() + fake.image.tobytes())
    wide = max(own.wide, fake.wide)
    return Face(image, points, item.id, who, digest, "template", wide, codings)
