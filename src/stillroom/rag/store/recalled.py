"""What an index holds already, to be taken over: documents by path, vectors by text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.rag.store.extras import Extras
from stillroom.rag.store.ledger import Ledger
from stillroom.rag.store.opening import OpenSnapshot
from stillroom.rag.store.parts import Entry, Facts, Mark
from stillroom.rag.store.schema import FOREVER, PASSAGE_BITS
from stillroom.rag.store.segments import Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Held", "Recalled", "read_marks", "read_passages"]


@dataclass(frozen=True, slots=True)
class Recalled:
    """A document that an index holds, read where it stands."""

    entry: Entry
    content: int
    held: Held

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return self.held.ledger.document(self.content)

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""
        return read_passages(self.held.ledger, self.content)

    def marks(self) -> Sequence[Mark]:
        """Return what is known of each passage's vector."""
        return read_marks(self.held.ledger, self.content)

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""
        return self.held.vectors_of(self.content, self.entry.passages)

    def extras(self) -> Extras:
        """Return what the passages are found by beside words and vectors."""
        return self.held.extras_of(self.content, self.entry.passages)


class Held:
    """The documents and vectors of an index, the newest snapshot's and those still on the disk."""

    def __init__(self, opened: OpenSnapshot) -> None:
        """Read an open snapshot, the newest."""
        self.opened = opened
        self.ledger = opened.ledger
        self.segments: dict[int, Segment] = {one.number: one for one in opened.segments}

    @property
    def description(self) -> Mapping[str, Any]:
        """What shaped the index."""
        return self.ledger.description

    def list_parts(self) -> list[tuple[Recalled, Facts]]:
        """Return every document of the newest snapshot with its facts, in order of path."""
        rows = self.ledger.query(
            "SELECT d.path, c.digest, c.key, c.passages, c.truncated, d.tenant, d.labels, d.fields "
            "FROM documents d JOIN contents c ON c.key = d.content WHERE d.died = ? "
            "ORDER BY d.path",
            (FOREVER,),
        )
        return [
            (
                self._recall(*row),
                Facts(json.loads(fields), tenant, tuple(json.loads(labels))),
            )
            for *row, tenant, labels, fields in rows
        ]

    def take(self, path: str, digest: str) -> Recalled | None:
        """Return the newest snapshot's document of that path and digest, if it holds it."""
        rows = self.ledger.query(
            "SELECT c.key, c.passages, c.truncated FROM documents d JOIN contents c "
            "ON c.key = d.content WHERE d.path = ? AND d.died = ? AND c.digest = ?",
            (path, FOREVER, digest),
        )
        return self._recall(path, digest, *rows[0]) if rows else None

    def find_same(self, digest: str) -> list[Recalled]:
        """Return the newest snapshot's documents of the same bytes, in order of path."""
        rows = self.ledger.query(
            "SELECT d.path, c.digest, c.key, c.passages, c.truncated FROM contents c "
            "JOIN documents d ON d.content = c.key "
            "WHERE c.digest = ? AND d.died = ? ORDER BY d.path",
            (digest, FOREVER),
        )
        return [self._recall(*row) for row in rows]

    def vector_of(self, embedded: bytes) -> tuple[NDArray[Any], bool] | None:
        """Return the vector that was made of a text, and whether the text was cut, if there is one.

        Args:
            embedded: The digest of the text, prefixes included.
        """
        for segment, row, is_truncated in self._places_of(embedded):
            return segment.vectors[row], is_truncated
        return None

    def extras_of_text(self, embedded: bytes) -> Extras | None:
        """Return the extras of a passage by the digest of its text, or None where there is none."""
        for segment, row, _ in self._places_of(embedded):
            return segment.extras.span(row, row + 1)
        return None

    def _places_of(self, embedded: bytes) -> Iterator[tuple[Segment, int, bool]]:
        """Yield where passages of a text lie, and whether it was cut."""
        rows = self.ledger.query(
            "SELECT a.key, a.truncated, p.segment, p.start FROM passages a "  # noqa: S608
            f"JOIN documents d ON d.content = a.key >> {PASSAGE_BITS} "
            "JOIN placements p ON p.document = d.key WHERE a.embedded = ?",
            (embedded,),
        )
        for key, truncated, segment, start in rows:
            if segment in self.segments:
                row = start + (key & ((1 << PASSAGE_BITS) - 1))
                yield self.segments[segment], row, bool(truncated)

    def vectors_of(self, content: int, count: int) -> NDArray[Any]:
        """Return the vectors of a content's passages, (N, D)."""
        segment, start = self._find(content)
        matrix: NDArray[Any] = np.asarray(segment.vectors[start : start + count])
        return matrix

    def extras_of(self, content: int, count: int) -> Extras:
        """Return the extras of a content's passages."""
        segment, start = self._find(content)
        return segment.extras.span(start, start + count)

    def _find(self, content: int) -> tuple[Segment, int]:
        rows = self.ledger.query(
            "SELECT p.segment, p.start FROM documents d JOIN placements p "
            "ON p.document = d.key WHERE d.content = ? ORDER BY p.died DESC",
            (content,),
        )
        for segment, start in rows:
            if segment in self.segments:
                return self.segments[segment], int(start)
        raise KeyError(content)

    def close(self) -> None:
        """Close the index."""
        self.opened.close()

    def _recall(
        self, path: str, digest: str, content: int, passages: int, truncated: int
    ) -> Recalled:
        return Recalled(Entry(path, digest, passages, truncated), content, self)


_PASSAGES = "SELECT {} FROM passages WHERE key >= ? AND key < ? ORDER BY key"


def read_passages(ledger: Ledger, content: int) -> list[bytes]:
    """Return the passages of a content as lines of JSON, in order."""
    return [bytes(body) for (body,) in ledger.query(_PASSAGES.format("body"), _range(content))]


def read_marks(ledger: Ledger, content: int) -> list[Mark]:
    """Return what is known of the vectors of a content's passages, in order."""
    rows = ledger.query(_PASSAGES.format("embedded, truncated"), _range(content))
    return [Mark(bytes(embedded), bool(truncated)) for embedded, truncated in rows]


def _range(content: int) -> tuple[int, int]:
    return content << PASSAGE_BITS, (content + 1) << PASSAGE_BITS
