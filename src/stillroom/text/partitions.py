"""N-grams and whose they are, dealt into parts: a join takes one at a time.

The parts lie in files of a folder, or in memory where none is given. An n-gram is of one part only,
whoever has it. Parts are of like size also where the n-grams are the least ones of their texts, as
prefixes are: each is multiplied by a number without a pattern first (Knuth, The Art of Computer
Programming 3, 6.4).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

__all__ = ["Partitions"]

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Partitions:
    """Rows of an n-gram and a number, by part; a context manager, which removes its files."""

    def __init__(self, parts: int, folder: Path | None) -> None:
        """Hold nothing yet.

        Args:
            parts: How many.
            folder: Where a folder for the files is made; None keeps all in memory.
        """
        self.parts = parts
        self._kept: list[list[Hashes]] = [[] for _ in range(parts)]
        self._folder = None if folder is None else Path(tempfile.mkdtemp(dir=folder))

    def __enter__(self) -> Self:
        """Hold files within the body alone."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove them."""
        if self._folder is not None:
            shutil.rmtree(self._folder)

    def add(self, values: Hashes, owners: Positions) -> None:
        """Deal out n-grams, (N,) below 2**48, and whose they are, (N,)."""
        part = ((values * _GOLDEN >> np.uint64(48)) * np.uint64(self.parts)) >> np.uint64(16)
        part = part.astype(np.min_scalar_type(self.parts))  # few bits are sorted by digits
        order = np.argsort(part, kind="stable")
        cuts = np.searchsorted(part[order], np.arange(1, self.parts, dtype=part.dtype))
        for number, rows in enumerate(np.split(_stack(values[order], owners[order]), cuts)):
            self._keep(number, rows)

    def read(self, part: int) -> tuple[Hashes, Positions]:
        """Return the n-grams of a part, (N,), and whose they are, (N,)."""
        kept = self._kept[part]
        if self._folder is not None and (path := self._path(self._folder, part)).exists():
            kept = [np.fromfile(path, dtype=np.uint64).reshape(-1, 2)]
        none = np.zeros((0, 2), dtype=np.uint64)
        rows = kept[0] if len(kept) == 1 else np.concatenate([none, *kept])
        return rows[:, 0].copy(), rows[:, 1].astype(np.int64)

    def sort(self) -> None:
        """Put the n-grams of each part in order, so that reading finds them so."""
        for part in range(self.parts):
            values, owners = self.read(part)
            order = np.argsort(values, kind="stable")
            self._kept[part] = []
            if self._folder is not None:
                self._path(self._folder, part).unlink(missing_ok=True)
            self._keep(part, _stack(values[order], owners[order]))

    def _keep(self, part: int, rows: Hashes) -> None:
        if self._folder is None:
            self._kept[part].append(rows)
        else:
            with self._path(self._folder, part).open("ab") as file:
                file.write(rows.tobytes())

    @staticmethod
    def _path(folder: Path, part: int) -> Path:
        return folder / f"{part}.u64"


def _stack(values: Hashes, owners: Positions) -> Hashes:
    return np.stack([values, owners.astype(np.uint64)], axis=1)
