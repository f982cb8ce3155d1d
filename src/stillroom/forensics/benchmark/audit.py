"""Benchmark audit: leakage, near-duplicates, and a baseline on file traits alone.

Leakage is the same person, recording or bytes in two splits. Near duplicates are images of two
splits that look the same without a declared relation. The third audit fits a baseline on file
traits alone (format, size, quantization tables, tags), not on pixels: a benchmark where it succeeds
measures codecs.

Source: difference hash, Krawetz 2013 (here of 16 x 16 cells, 256 bits); grouped cross-validation of
a penalized logistic regression by Newton's method.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.evaluate import Metric
from stillroom.forensics.benchmark.manifest import ManifestItem
from stillroom.forensics.benchmark.metrics import bootstrap_auc, roc_auc
from stillroom.forensics.media.face_types import Image
from stillroom.forensics.media.images import load_image
from stillroom.forensics.modalities.image import is_grayscale
from stillroom.provenance import digest_file, digest_text

__all__ = [
    "BenchmarkAudit",
    "audit_items",
    "audit_pairs",
    "compute_difference_hash",
    "find_leaks",
    "find_near_duplicates",
    "fit_file_trait_baseline",
]

Floats = npt.NDArray[np.float64]
_SIDE = 16
_NEAR_BITS = 20  # of 256 bits; different aligned faces differ in 50 or more
_FOLDS = 5
_BLOCK = 512
_SUSPECT = 0.6
_MAX_KINDS = 40
_MAX_NAME = 60  # of a trait with its value
_COUNTS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


@dataclass(frozen=True)
class BenchmarkAudit:
    """Result of an audit; ``leaks`` and ``twins`` are lines, ``by_file`` is the file baseline.

    ``tells`` are the most predictive file traits, with the area of each alone.
    """

    leaks: tuple[str, ...]
    twins: tuple[str, ...]
    by_file: Metric
    tells: Mapping[str, float] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def leaks_by_file(self) -> bool:
        """Whether file traits alone separate fake from real with significance."""
        return self.by_file.low > 0.5 and self.by_file.value > _SUSPECT

    @property
    def undecided(self) -> str:
        """Why the file baseline could not be measured, as one clause; empty if it was."""
        if not math.isnan(self.by_file.low):
            return ""
        note = self.by_file.note or "no interval"
        return f"not shown whether the file alone tells fake from real: {note} (n {self.by_file.n})"

    @property
    def leak(self) -> str:
        """Description of the leak by file traits, as one clause; empty without one."""
        if not self.leaks_by_file:
            return ""
        traits = ", ".join(f"{name} ({value:.2f})" for name, value in self.tells.items())
        return f"the file alone tells fake from real ({self._area_text}), most by: {traits}"

    @property
    def _area_text(self) -> str:
        by = self.by_file
        return f"area {by.value:.3f}, 95 % {by.low:.3f} to {by.high:.3f}, n {by.n}"

    @property
    def is_clean(self) -> bool:
        """Whether the audit found no problem."""
        return not (self.leaks or self.twins or self.leaks_by_file or self.unread or self.undecided)

    @property
    def faults(self) -> tuple[str, ...]:
        """What would make a detector, or its areas, worthless; one clause each."""
        leak = (
            f"the training set leaks: {self.leak}: make both classes alike, or check will report "
            "all results of this detector as inconclusive"
        )
        twins = (
            f"{len(self.twins)} pairs of pictures of two splits look the same, so that areas may "
            f"be too high; the first: {''.join(self.twins[:1])}"
        )
        faults = {leak: self.leak, self.undecided: self.undecided, twins: self.twins}
        return tuple(fault for fault, found in faults.items() if found)

    def lines(self) -> list[str]:
        """Format the results as lines."""
        lines = [*(f"leak: {line}" for line in self.leaks)]
        lines += [f"near duplicate: {line}" for line in self.twins]
        lines += [f"not read: {line}" for line in self.unread]
        lines.append(
            self.leak
            or self.undecided
            or f"the file alone does not tell fake from real ({self._area_text})"
        )
        return lines

    def summary(self) -> dict[str, Any]:
        """Return the figures for detector metadata, with near duplicates counted."""
        return {
            "by_file": self.by_file.to_json(),
            "tells": dict(self.tells),
            "leak": self.leak,
            "undecided": self.undecided,
            "near_duplicates": len(self.twins),
            "unread": len(self.unread),
        }

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "clean": self.is_clean,
            "undecided": self.undecided,
            "leaks": list(self.leaks),
            "twins": list(self.twins),
            "by_file": self.by_file.to_json(),
            "tells": dict(self.tells),
            "unread": list(self.unread),
        }


def audit_items(items: Sequence[ManifestItem], folder: Path) -> BenchmarkAudit:
    """Audit the images of a benchmark."""
    outlines, traits, digests, readable, unread = [], [], [], [], []
    for item in items:
        try:
            picture = load_image(folder / item.path)
        except DataError as error:
            unread.append(f"{item.id}: {error.problems[0].what}")
            continue
        outlines.append(compute_difference_hash(picture.image))
        colors = "gray" if is_grayscale(picture.image) else "color"
        traits.append({**_read_file_traits(folder / item.path), "colors": colors})
        digests.append(digest_file(folder / item.path))
        readable.append(item)
    by_file, tells = fit_file_trait_baseline(readable, traits)
    leaks = [*find_leaks(items), *_equal_bytes(readable, digests)]
    return BenchmarkAudit(
        tuple(leaks), tuple(find_near_duplicates(readable, outlines)), by_file, tells, tuple(unread)
    )


def audit_pairs(
    traits: Sequence[Mapping[str, float | str]],
    labels: Sequence[int],
    groups: Sequence[str],
    *,
    seed: int = 0,
) -> BenchmarkAudit:
    """Audit training pairs that are made in memory, without files to compare.

    Args:
        traits: Traits of each fake and twin that should not be predictive: size, colors, loudness.
        labels: 1 for fake.
        groups: Identity of each.
        seed: Seed of folds and resampling.
    """
    items = [
        ManifestItem(str(index), str(index), label, source=group)
        for index, (label, group) in enumerate(zip(labels, groups, strict=True))
    ]
    by_file, tells = fit_file_trait_baseline(items, traits, seed=seed)
    return BenchmarkAudit((), (), by_file, tells)


def find_leaks(items: Sequence[ManifestItem]) -> list[str]:
    """Return people and recordings that are in more than one split, a line each."""
    splits_by_name: dict[tuple[str, str], set[str]] = defaultdict(set)
    for item in items:
        if not item.split:
            continue
        for name in item.people:
            splits_by_name["identity", f"{item.dataset}/{name}".lstrip("/")].add(item.split)
        if item.source:
            splits_by_name["source", f"{item.dataset}/{item.source}".lstrip("/")].add(item.split)
    return [
        f"{kind} {name} is in {' and '.join(sorted(splits))}"
        for (kind, name), splits in sorted(splits_by_name.items())
        if len(splits) > 1
    ]


def compute_difference_hash(image: Image) -> npt.NDArray[np.uint8]:
    """Return the difference hash: 256 packed bits of brightness gradients between cells, (32,)."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (_SIDE + 1, _SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits((np.diff(small, axis=1) > 0).reshape(-1))


def find_near_duplicates(
    items: Sequence[ManifestItem], outlines: Sequence[npt.NDArray[np.uint8]]
) -> list[str]:
    """Return pairs of different splits that look the same, a line each, by exhaustive comparison.

    Quadratic in the number of rows: some 20 s for 20 000 rows.
    """
    if not items:
        return []
    bits = np.stack(outlines)
    splits = np.array([item.split for item in items])
    duplicates = []
    for begin in range(0, len(items), _BLOCK):
        block = bits[begin : begin + _BLOCK]
        gaps = np.zeros((len(block), len(items) - begin), dtype=np.uint16)
        for byte in range(bits.shape[1]):
            gaps += _COUNTS[block[:, byte, None] ^ bits[None, begin:, byte]]
        apart = (splits[begin : begin + _BLOCK, None] != splits[None, begin:]) & (
            gaps <= _NEAR_BITS
        )
        for first, second in zip(*np.nonzero(np.triu(apart, 1)), strict=True):
            first_item, second_item = items[begin + first], items[begin + second]
            if first_item.split and second_item.split:
                duplicates.append(
                    f"{first_item.id} ({first_item.split}) and {second_item.id} "
                    f"({second_item.split}) differ in {int(gaps[first, second])} of "
                    f"{_SIDE * _SIDE} cells"
                )
    return duplicates


def _read_file_traits(path: Path) -> dict[str, float | str]:
    """Return traits of an image file without its pixels: categories as text, measures as floats."""
    from PIL import Image as Pictures

    size = path.stat().st_size
    with Pictures.open(path) as opened:
        tables = getattr(opened, "quantization", None) or {}
        exif = opened.getexif()
        pixels = opened.width * opened.height
        return {
            "ending": path.suffix.lower(),
            "format": str(opened.format),
            "mode": opened.mode,
            "size": f"{opened.width}x{opened.height}",
            "width": float(opened.width),
            "height": float(opened.height),
            "pixels": float(np.log(pixels)),
            "bytes a pixel": float(np.log(size / pixels)),
            "quantization": digest_text(str(sorted((k, tuple(v)) for k, v in tables.items())))[:8],
            "subsampling": str(opened.info.get("layers", "")) + str(getattr(opened, "layer", "")),
            "tags": " ".join(map(str, sorted(exif))),
            "entries": " ".join(sorted(str(key) for key in opened.info if key != "exif")),
            "length of its name": str(len(path.stem)),
        }


def fit_file_trait_baseline(
    items: Sequence[ManifestItem], traits: Sequence[Mapping[str, float | str]], *, seed: int = 0
) -> tuple[Metric, dict[str, float]]:
    """Fit a baseline on file traits, by cross-validation over sources, or people.

    Returns:
        The area with its interval over these, and the most predictive traits, each alone.
    """
    labels = np.array([item.label for item in items], dtype=np.int64)
    groups = [item.source or item.identity or item.clip or item.id for item in items]
    if len(items) == 0 or labels.min() == labels.max():
        note = "one class is missing"
        return Metric("tell_by_file", float("nan"), n=len(items), note=note), {}
    columns = dict(_columns(traits))
    if not columns:  # all files have equal traits
        return bootstrap_auc(labels, np.zeros(len(labels)), groups, name="tell_by_file"), {}
    features = np.stack(list(columns.values()), axis=1)
    fold = np.array([int(digest_text(f"{seed} {group}")[:8], 16) % _FOLDS for group in groups])
    scores = np.zeros(len(items))
    for number in range(_FOLDS):
        is_held_out = fold == number
        if is_held_out.any() and len(set(labels[~is_held_out].tolist())) == 2:
            scores[is_held_out] = _fit(features[~is_held_out], labels[~is_held_out])(
                features[is_held_out]
            )
    single_areas = {
        name: abs(area - 0.5) + 0.5
        for name, values in columns.items()
        if (area := roc_auc(labels, values)) is not None
    }
    best = sorted(single_areas.items(), key=lambda pair: -pair[1])[:3]
    best_traits = dict[str, float]()
    for name, area in best:  # of names cut to the same text the greater area stays
        best_traits.setdefault(name[:_MAX_NAME], area)
    return bootstrap_auc(labels, scores, groups, name="tell_by_file", seed=seed), best_traits


def _equal_bytes(items: Sequence[ManifestItem], digests: Sequence[str]) -> Iterator[str]:
    by_digest: dict[str, list[ManifestItem]] = defaultdict(list)
    for item, digest in zip(items, digests, strict=True):
        by_digest[digest].append(item)
    for same in by_digest.values():
        if len({item.split for item in same}) > 1 or len({item.label for item in same}) > 1:
            yield f"{' and '.join(item.id for item in same)} are the same bytes"


def _columns(traits: Sequence[Mapping[str, float | str]]) -> Iterator[tuple[str, Floats]]:
    """Yield a column for each measure, and one for each category that varies among files."""
    for name in traits[0]:
        values = [row[name] for row in traits]
        if isinstance(values[0], float):
            numbers = np.array(values, dtype=np.float64)
            if numbers.std() > 0:
                yield name, (numbers - numbers.mean()) / numbers.std()
            continue
        # The values that most files have: that of all fakes is one of them, whatever it is.
        kinds = [kind for kind, _ in Counter(sorted(map(str, values))).most_common(_MAX_KINDS)]
        for kind in kinds if len(kinds) > 1 else []:
            yield f"{name} {kind}", np.array([str(v) == kind for v in values], np.float64)


def _fit(features: Floats, labels: npt.NDArray[np.int64]) -> Callable[[Floats], Floats]:
    """Fit a penalized logistic regression by Newton's method."""
    design = np.column_stack([np.ones(len(features)), features])
    weights = np.zeros(design.shape[1])
    penalty = np.eye(len(weights))
    penalty[0, 0] = 1e-6
    for _ in range(12):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (chance - labels) + penalty @ weights
        hessian = (design * (chance * (1 - chance))[:, None]).T @ design + penalty
        weights = weights - np.linalg.solve(hessian, gradient)
    return lambda more: np.asarray(np.column_stack([np.ones(len(more)), more]) @ weights)
