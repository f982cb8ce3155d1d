"""The files of an index and the description that ties them together.

``index.json`` is written last and names the size and digest of every other file, so that a
half-written or changed index is recognized before it is read. It holds nothing that depends on the
clock or on how the index came about: an incremental build writes the bytes of one from scratch.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from stillroom.errors import IntegrityError
from stillroom.jobs import atomic_write
from stillroom.provenance import digest_file, digest_json

__all__ = [
    "DOCUMENTS",
    "INDEX",
    "LEXICON",
    "PASSAGES",
    "VECTORS",
    "Description",
    "Entry",
    "Lines",
    "describe_files",
    "read_description",
    "write_description",
]

INDEX = "index.json"
DOCUMENTS = "documents.jsonl"
PASSAGES = "passages.jsonl"
LEXICON = "keyword.sqlite"
VECTORS = "vectors.npy"
_FORMAT = 1
_FILES = (DOCUMENTS, PASSAGES, LEXICON, VECTORS)


@dataclass(frozen=True, slots=True)
class Entry:
    """One document of an index: its path and digest, its passages, how many were too long."""

    path: str
    digest: str
    passages: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Description:
    """What index.json says; ``settings`` are the recipe's, ``preparation`` a digest.

    ``preparation`` covers all that shapes passages and vectors, so that two indexes with the same
    one may share them.
    """

    preparation: str
    settings: Mapping[str, Any]
    embedder: Mapping[str, Any]
    analyzer: Mapping[str, Any]
    counts: Mapping[str, int]
    documents: tuple[Entry, ...]
    failures: tuple[Mapping[str, str], ...]
    files: Mapping[str, tuple[int, str]]

    @property
    def digest(self) -> str:
        """The digest of the whole index: settings and every file's bytes."""
        return digest_json(self._body())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, the digest included."""
        return {**self._body(), "digest": self.digest}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        return cls(
            preparation=data["preparation"],
            settings=data["settings"],
            embedder=data["embedder"],
            analyzer=data["analyzer"],
            counts=data["counts"],
            documents=tuple(Entry(*entry) for entry in data["documents"]),
            failures=tuple(data["failures"]),
            files={name: (int(size), str(mark)) for name, (size, mark) in data["files"].items()},
        )

    def _body(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "preparation": self.preparation,
            "settings": dict(self.settings),
            "embedder": dict(self.embedder),
            "analyzer": dict(self.analyzer),
            "counts": dict(self.counts),
            "documents": [list(asdict(entry).values()) for entry in self.documents],
            "failures": [dict(failure) for failure in self.failures],
            "files": {name: list(entry) for name, entry in sorted(self.files.items())},
        }


def write_description(folder: Path, description: Description) -> None:
    """Write index.json; the files it names must be finished."""
    with atomic_write(folder / INDEX) as file:
        json.dump(description.to_json(), file, ensure_ascii=False, indent=1)


def describe_files(folder: Path) -> dict[str, tuple[int, str]]:
    """Return size and digest of every file that index.json names."""
    return {name: ((folder / name).stat().st_size, digest_file(folder / name)) for name in _FILES}


def read_description(folder: Path, *, verify: bool = True) -> Description:
    """Read index.json and hold the other files against it.

    Args:
        folder: The folder that holds index.json.
        verify: Recompute the files' digests; otherwise only their sizes are compared.

    Raises:
        IntegrityError: If a file is missing or is not what was written.
    """
    try:
        data = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if data.get("format") != _FORMAT:
            raise ValueError(f"format {data.get('format')!r}, expected {_FORMAT}")
        description = Description.from_json(data)
        if description.digest != data.get("digest"):
            raise ValueError("it was changed after it was written")
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{folder} holds no {INDEX}: it is no index, or a half-written one",
            code="rag.index-unfinished",
            where=str(folder),
            expected=f"{INDEX} next to {', '.join(_FILES)}",
            next="finish the job with --resume, or give the folder of a finished one",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder / INDEX, str(error)) from error
    for name in _FILES:
        _check_file(folder / name, description.files.get(name), verify=verify)
    return description


def _check_file(path: Path, entry: tuple[int, str] | None, *, verify: bool) -> None:
    if entry is None or not path.is_file():
        raise _damaged(path, "it is missing")
    size, digest = entry
    if path.stat().st_size != size:
        raise _damaged(path, f"it has {path.stat().st_size} bytes instead of {size}")
    if verify and digest_file(path) != digest:
        raise _damaged(path, "its bytes are not those that were written")


def _damaged(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"the index is damaged: {path.name}: {reason}",
        code="rag.index-damaged",
        where=str(path),
        expected="the file that the job wrote",
        next="build the index again with --overwrite",
    )


class Lines:
    """The lines of a file by number, read where they stand; safe from several threads."""

    def __init__(self, path: Path) -> None:
        """Map the file and find its line ends."""
        self._file = path.open("rb")
        size = path.stat().st_size
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        ends = np.flatnonzero(np.frombuffer(self._map, dtype=np.uint8) == ord("\n"))
        self._ends: list[int] = ends.tolist()

    def __len__(self) -> int:
        """Return how many lines there are."""
        return len(self._ends)

    def __getitem__(self, number: int) -> bytes:
        """Return one line without its end."""
        start = self._ends[number - 1] + 1 if number else 0
        return self._map[start : self._ends[number]]

    def __iter__(self) -> Iterator[bytes]:
        """Yield every line without its end."""
        return (self[number] for number in range(len(self)))

    def close(self) -> None:
        """Unmap the file."""
        if isinstance(self._map, mmap.mmap):
            self._map.close()
        self._file.close()
