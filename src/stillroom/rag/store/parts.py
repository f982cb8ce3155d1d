"""Parts: one document's share of an index, ready to be written, wherever it comes from.

A part is a document parsed just now, one that an index holds already, or one that is held under
another path. What users say of a document beside its bytes (fields, tenant, labels) are its facts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from stillroom.provenance import digest_bytes
from stillroom.rag.store.extras import Extras, extras_of
from stillroom.records import Document, Origin, Passage
from stillroom.text.method import Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Entry", "Facts", "Mark", "Part", "Relabelled", "can_relabel", "mark_of", "to_line"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One document of an index: its path and digest, its passages, how many were too long."""

    path: str
    digest: str
    passages: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Mark:
    """Of a passage: the digest of what was embedded, and whether the embedder cut it."""

    embedded: bytes
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What is said of a document beside its bytes.

    ``labels`` name who may read it where an index has tenants; none is nobody.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    tenant: str = ""
    labels: tuple[str, ...] = ()


class Part(Protocol):
    """One document's share of an index."""

    @property
    def entry(self) -> Entry:
        """What the index says of the document."""

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""

    def marks(self) -> Sequence[Mark]:
        """Return what is known of each passage's vector."""

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""


@dataclass(frozen=True, slots=True)
class Relabelled:
    """A part under another path: the same bytes, text and vectors, other ids."""

    part: Part
    path: str

    @property
    def entry(self) -> Entry:
        """What the index says of the document."""
        return replace(self.part.entry, path=self.path)

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return to_line(self._document().to_json())

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""
        document_id = self._document().id
        lines = []
        for line in self.part.passage_lines():
            passage = Passage.from_json(json.loads(line))
            moved = replace(
                passage,
                document_id=document_id,
                location=replace(passage.location, path=self.path),
                origin=_rename(passage.origin, passage.document_id, document_id),
            )
            lines.append(to_line(moved.to_json()))
        return lines

    def marks(self) -> Sequence[Mark]:
        """Return what is known of each passage's vector."""
        return self.part.marks()

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""
        return self.part.vectors()

    def extras(self) -> Extras:
        """Return what the passages are found by beside words and vectors."""
        return extras_of(self.part)

    def _document(self) -> Document:
        document = Document.from_json(json.loads(self.part.document_line()))
        return replace(document, path=self.path)


def can_relabel(part: Part, path: str) -> bool:
    """Return whether a file of another path and the same bytes would be parsed to the same text.

    It would not where the suffix says another format, or where the name stands in for a title.
    """
    old = part.entry.path
    if PurePosixPath(old).suffix.lower() != PurePosixPath(path).suffix.lower():
        return False
    before, after = Source(old, "").stem, Source(path, "").stem
    return before == after or json.loads(part.document_line())["title"] != before


def _rename(origin: Origin, old: str, new: str) -> Origin:
    """Return an origin whose chain names a document by another id."""
    chain = tuple(
        replace(link, parents=tuple(new if parent == old else parent for parent in link.parents))
        for link in origin.chain
    )
    return replace(origin, chain=chain)


def mark_of(document: bytes, passages: Sequence[bytes]) -> str:
    """Return the digest of all that a document became."""
    return digest_bytes(b"\n".join([document, *passages]))


def to_line(value: Mapping[str, Any]) -> bytes:
    """Return a value as one line of JSON, without the line end."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
