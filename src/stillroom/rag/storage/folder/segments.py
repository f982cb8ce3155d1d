"""Segments (shards): folders of immutable files that hold the rows of passages.

All files of a segment can be rebuilt from the catalog: the postings from its passages, the vectors
with the embedder. A segment is written under a temporary name, synced and renamed before a snapshot
refers to it; the next writer removes segments without a snapshot.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stillroom.errors import count_noun
from stillroom.jobs import atomic_write
from stillroom.jobs.files import sync_folder
from stillroom.objects.disk import full_disk_as_error, sync_path
from stillroom.provenance import digest_file
from stillroom.rag.search_engines.dense import BINARY_CODES, BinaryCodes, VectorCodes
from stillroom.rag.search_engines.keyword import Postings, merge_postings, write_postings
from stillroom.rag.search_engines.late_interaction import merge_token_vectors
from stillroom.rag.search_engines.sparse import merge_term_weights
from stillroom.rag.storage.folder.catalog import SegmentEntry
from stillroom.rag.storage.snapshots import SegmentLayout, check_file, make_damage_error
from stillroom.rag.types import AuxiliaryVectors, iter_postings_rows, open_auxiliary_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.analysis.analyzer import Analyzer
    from stillroom.rag.types import StagedDocument

__all__ = [
    "VECTORS",
    "MergedSegment",
    "Segment",
    "get_segment_folder",
    "list_segment_folders",
    "open_segment",
    "write_segment",
]


_SEGMENTS = "segments"
VECTORS = "vectors.npy"


@dataclass(frozen=True, slots=True)
class Segment:
    """An open segment: vectors (N, D) mapped into memory, with their codes and postings.

    ``sketches`` and ``extras`` are optional, as set in the index's settings.
    """

    number: int
    vectors: NDArray[Any]
    codes: VectorCodes
    postings: Postings
    sketches: BinaryCodes | None = None
    extras: AuxiliaryVectors = field(default_factory=AuxiliaryVectors)


@dataclass(frozen=True, slots=True)
class MergedSegment:
    """An older segment with a mask of the rows that go into a new one."""

    segment: Segment
    kept: NDArray[np.bool_]


def get_segment_folder(folder: Path, number: int) -> Path:
    """Return the folder of a segment."""
    return folder / _SEGMENTS / f"{number:06d}"


def list_segment_folders(folder: Path) -> list[Path]:
    """Return all folders below ``segments``, with or without a snapshot."""
    parent = folder / _SEGMENTS
    return sorted(parent.iterdir()) if parent.is_dir() else []


def write_segment(
    folder: Path,
    number: int,
    merged: Sequence[MergedSegment],
    parts: Sequence[StagedDocument],
    *,
    analyzer: Analyzer | None,
    dimensions: int,
    dtype: str,
    structures: SegmentLayout,
    check: Callable[[], None],
) -> SegmentEntry:
    """Write a segment: the kept rows of older ones, then the passages of documents, in order.

    The folder of segment ``number`` must not exist; ``analyzer`` is None without documents.
    ``structures`` are written in addition to postings and vectors; ``check`` is called regularly,
    and raises to stop.

    Raises:
        IntegrityError: If a document lacks vectors that the settings ask for.
        ResourceError: If the disk is full.
    """
    final = get_segment_folder(folder, number)
    draft = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    with full_disk_as_error(folder):
        draft.mkdir(parents=True)
        rows = _write_vectors(draft / VECTORS, merged, parts, dimensions, dtype)
        vectors = np.load(draft / VECTORS, mmap_mode="r")
        VectorCodes.encode(vectors).write(draft)
        if structures.sketches:
            BinaryCodes.make(vectors).write(draft)
        lines = (line for part in parts for line in part.passage_lines())
        new_postings_folder = draft if not merged else draft / "fresh"
        new_postings_folder.mkdir(exist_ok=True)
        write_postings(
            new_postings_folder, iter_postings_rows(lines, analyzer, check) if analyzer else ()
        )
        if merged:
            opened = [
                *(older.segment.postings for older in merged),
                Postings.open(new_postings_folder),
            ]
            merge_postings(draft, opened, [*(older.kept for older in merged), None])
            shutil.rmtree(new_postings_folder)
        if structures.sparse:
            merge_term_weights(draft, _iter_pieces(draft, merged, parts, "weights"))
        if structures.tokens:
            merge_token_vectors(draft, _iter_pieces(draft, merged, parts, "tokens"))
        check()
        sync_folder(draft)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        sync_path(final.parent)
    return SegmentEntry(number, rows, _describe_files(final))


def _describe_files(folder: Path) -> dict[str, tuple[int, str]]:
    """Return size and digest of every file of a segment, by name."""
    return {
        path.name: (path.stat().st_size, digest_file(path))
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def open_segment(folder: Path, entry: SegmentEntry, *, verify: bool) -> Segment:
    """Open a segment's files.

    Without ``verify`` only the files' sizes are compared.

    Raises:
        IntegrityError: If a file is missing or has changed.
    """
    segment_folder = get_segment_folder(folder, entry.number)
    for name, recorded in entry.files.items():
        check_file(segment_folder / name, recorded, verify=verify)
    try:
        vectors: NDArray[Any] = np.load(segment_folder / VECTORS, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise make_damage_error(segment_folder / VECTORS, str(error)) from error
    postings, codes = Postings.open(segment_folder), VectorCodes.open(segment_folder)
    sketches = BinaryCodes.open(segment_folder) if BINARY_CODES in entry.files else None
    extras = open_auxiliary_vectors(segment_folder, entry.files)
    optional: list[Sized | None] = [sketches, extras.weights, extras.tokens]
    parts: list[Sized] = [vectors, codes, postings]
    parts += [part for part in optional if part is not None]
    if {len(part) for part in parts} != {entry.rows} or vectors.ndim != 2:
        raise make_damage_error(
            segment_folder,
            f"it has {count_noun(len(vectors), 'vector')} and {count_noun(len(postings), 'row')} "
            f"of postings",
        )
    return Segment(entry.number, vectors, codes, postings, sketches, extras)


def _write_vectors(
    path: Path,
    merged: Sequence[MergedSegment],
    parts: Sequence[StagedDocument],
    dimensions: int,
    dtype: str,
) -> int:
    """Write one .npy file in pieces, so that the whole matrix is never in memory."""
    rows = sum(int(older.kept.sum()) for older in merged) + sum(
        part.entry.passages for part in parts
    )
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (rows, dimensions),
    }
    with atomic_write(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for older in merged:
            file.write(
                np.ascontiguousarray(older.segment.vectors[older.kept], dtype=dtype).tobytes()
            )
        for part in parts:
            file.write(np.ascontiguousarray(part.vectors(), dtype=dtype).tobytes())
    return rows


T = TypeVar("T")


def _iter_pieces(
    folder: Path, merged: Sequence[MergedSegment], parts: Sequence[StagedDocument], name: str
) -> Iterator[tuple[Any, NDArray[np.bool_] | None]]:
    """Yield the pieces to merge one by one, so that few files are open at once."""
    for older in merged:
        yield _require(getattr(older.segment.extras, name), folder, name), older.kept
    for part in parts:
        yield _require(getattr(part.extras(), name), folder, part.entry.path), None


def _require(value: T | None, folder: Path, label: str) -> T:
    if value is None:
        raise make_damage_error(folder, f"{label} lacks vectors that the index's settings ask for")
    return value
