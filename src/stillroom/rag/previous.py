"""The index that stood at the same place before: what of it can be taken over.

A document is taken over where its path and digest are the same and so is the preparation (chunker,
embedder, limits, origin, version): then it would become the same passages and vectors again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError, IntegrityError
from stillroom.provenance import find_output
from stillroom.rag.layout import (
    DOCUMENTS,
    LEXICON,
    PASSAGES,
    VECTORS,
    Entry,
    Lines,
    read_description,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job

__all__ = ["Previous", "Reused", "open_previous"]


@dataclass(frozen=True, slots=True)
class Reused:
    """A document of the previous index, read where it stands."""

    entry: Entry
    previous: Previous
    number: int
    first: int

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return self.previous.documents[self.number]

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""
        rows = range(self.first, self.first + self.entry.passages)
        return [self.previous.passages[row] for row in rows]

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""
        return self.previous.matrix[self.first : self.first + self.entry.passages]


class Previous:
    """An older index of the same preparation, open for taking over."""

    def __init__(self, folder: Path, preparation: str) -> None:
        """Open the index in ``folder``, whose files must be whole.

        Raises:
            IntegrityError: If it is damaged.
            DataError: If it was prepared otherwise.
        """
        self.folder = folder
        self.description = read_description(folder)
        if self.description.preparation != preparation:
            raise DataError(
                "it was made with other settings, or another version or embedder",
                code="rag.other-preparation",
            )
        self.documents = Lines(folder / DOCUMENTS)
        self.passages = Lines(folder / PASSAGES)
        self.matrix: NDArray[Any] = np.load(folder / VECTORS, mmap_mode="r")
        self._parts: dict[tuple[str, str], Reused] = {}
        first = 0
        for number, entry in enumerate(self.description.documents):
            self._parts[entry.path, entry.digest] = Reused(entry, self, number, first)
            first += entry.passages

    def take(self, path: str, digest: str) -> Reused | None:
        """Return the document of that path and digest, if the index holds it."""
        return self._parts.get((path, digest))

    def copy_lexicon(self, target: Path, entries: Sequence[Entry], analyzer: str) -> bool:
        """Copy the keyword file if it would be made again byte for byte; return whether it was.

        Args:
            target: Where it is wanted.
            entries: The new index's documents.
            analyzer: Fingerprint of the new index's analyzer.
        """
        if (
            tuple(entries) != self.description.documents
            or analyzer != self.description.analyzer["fingerprint"]
        ):
            return False
        shutil.copyfile(self.folder / LEXICON, target)
        return True

    def close(self) -> None:
        """Close the files."""
        self.documents.close()
        self.passages.close()


def open_previous(job: Job, preparation: str) -> Previous | None:
    """Return the job's previous index, or None, saying why, where it cannot be used."""
    if job.previous is None:
        return None
    try:
        return Previous(find_output(job.previous, "index"), preparation)
    except (DataError, IntegrityError) as error:
        job.say(f"the previous index is not used: {error.problems[0].what}")
        return None
