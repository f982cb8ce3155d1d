"""Documents staged for an index: passage texts, digests, metadata and auxiliary vectors.

A part is a document parsed just now, one that an index holds already, or one that is held under
another path. What users say of a document beside its bytes (fields, tenant, labels) are its facts.

Term weights that a model learned, and vectors of its tokens. Documents carry theirs from where they
are made to the segment that keeps them; parts that know of none have none.

All of it goes before the text that is embedded, as far as the embedder has room, and is matched by
keywords. None of it is ever cited as the passage's words; of the four a model that answers is shown
title and headings, as a heading, and the table's header, which the document does say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from stillroom.models.encoders.text_encoder import get_max_text_tokens
from stillroom.provenance import digest_bytes
from stillroom.rag.search_engines.keyword import PostingsRow
from stillroom.rag.search_engines.late_interaction import TOKENS, TokenEngine, TokenVectors
from stillroom.rag.search_engines.sparse import WEIGHTS, SparseEngine, TermWeights
from stillroom.records import Document, Origin, Passage
from stillroom.text.interfaces import SourceFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.rag.analysis.analyzer import Analyzer
    from stillroom.rag.storage.snapshots import PassageRows

__all__ = [
    "AuxiliaryContent",
    "AuxiliaryDocument",
    "AuxiliarySnapshot",
    "AuxiliaryVectors",
    "DocumentEntry",
    "DocumentMetadata",
    "EmbeddingDigest",
    "RenamedDocument",
    "StagedDocument",
    "build_embedding_texts",
    "can_rename",
    "digest_content",
    "encode_json_line",
    "format_heading_path",
    "get_auxiliary_vectors",
    "get_readable_text",
    "get_text_with_headings",
    "iter_postings_rows",
    "list_keyword_prefixes",
    "open_auxiliary_vectors",
]


@dataclass(frozen=True, slots=True)
class DocumentEntry:
    """One document of an index: its path and digest, its passages, how many were too long."""

    path: str
    digest: str
    passages: int
    truncated: int


@dataclass(frozen=True, slots=True)
class EmbeddingDigest:
    """Of a passage: the digest of what was embedded, and whether the embedder cut it."""

    embedded: bytes
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class DocumentMetadata:
    """What is said of a document beside its bytes.

    ``labels`` name who may read it where an index has tenants; none is nobody.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    tenant: str = ""
    labels: tuple[str, ...] = ()


class StagedDocument(Protocol):
    """One document's share of an index."""

    @property
    def entry(self) -> DocumentEntry:
        """What the index says of the document."""

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""

    def marks(self) -> Sequence[EmbeddingDigest]:
        """Return what is known of each passage's vector."""

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""


@dataclass(frozen=True, slots=True)
class RenamedDocument:
    """A part under another path: the same bytes, text and vectors, other ids."""

    part: StagedDocument
    path: str

    @property
    def entry(self) -> DocumentEntry:
        """What the index says of the document."""
        return replace(self.part.entry, path=self.path)

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return encode_json_line(self._document().to_json())

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
                origin=_rename_origin(passage.origin, passage.document_id, document_id),
            )
            lines.append(encode_json_line(moved.to_json()))
        return lines

    def marks(self) -> Sequence[EmbeddingDigest]:
        """Return what is known of each passage's vector."""
        return self.part.marks()

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""
        return self.part.vectors()

    def extras(self) -> AuxiliaryVectors:
        """Return what the passages are found by beside words and vectors."""
        return get_auxiliary_vectors(self.part)

    def _document(self) -> Document:
        document = Document.from_json(json.loads(self.part.document_line()))
        return replace(document, path=self.path)


def can_rename(part: StagedDocument, path: str) -> bool:
    """Return whether a file of another path and the same bytes would be parsed to the same text.

    It would not where the suffix says another format, or where the name stands in for a title.
    """
    old = part.entry.path
    if PurePosixPath(old).suffix.lower() != PurePosixPath(path).suffix.lower():
        return False
    before, after = SourceFile(old, "").stem, SourceFile(path, "").stem
    return before == after or json.loads(part.document_line())["title"] != before


def _rename_origin(origin: Origin, old: str, new: str) -> Origin:
    """Return an origin whose chain names a document by another id."""
    chain = tuple(
        replace(link, parents=tuple(new if parent == old else parent for parent in link.parents))
        for link in origin.chain
    )
    return replace(origin, chain=chain)


def digest_content(document: bytes, passages: Sequence[bytes]) -> str:
    """Return the digest of all that a document became."""
    return digest_bytes(b"\n".join([document, *passages]))


def encode_json_line(value: Mapping[str, Any]) -> bytes:
    """Return a value as one line of JSON, without the line end."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class AuxiliaryVectors:
    """Term weights and token vectors of the same passages; None where there are none."""

    weights: TermWeights | None = None
    tokens: TokenVectors | None = None

    def span(self, first: int, last: int) -> AuxiliaryVectors:
        """Return those of the passages from ``first`` up to ``last``."""
        return AuxiliaryVectors(
            self.weights.span(first, last) if self.weights is not None else None,
            self.tokens.span(first, last) if self.tokens is not None else None,
        )


@runtime_checkable
class AuxiliaryDocument(Protocol):
    """A document's share of an index that brings extras."""

    def extras(self) -> AuxiliaryVectors:
        """Return the extras of its passages, in order."""


@runtime_checkable
class AuxiliaryContent(Protocol):
    """What a snapshot holds, with extras to be taken over."""

    def extras_of_text(self, embedded: bytes) -> AuxiliaryVectors | None:
        """Return the extras of a passage by the digest of its text, or None."""


@runtime_checkable
class AuxiliarySnapshot(Protocol):
    """A snapshot whose store keeps extras."""

    def open_sparse(self, everyone: PassageRows) -> SparseEngine | None:
        """Return what searches the term weights of a population, None where there are none."""

    def open_tokens(self, everyone: PassageRows) -> TokenEngine | None:
        """Return what searches the token vectors of a population, None where there are none."""


def get_auxiliary_vectors(part: StagedDocument) -> AuxiliaryVectors:
    """Return the extras that a part brings."""
    return part.extras() if isinstance(part, AuxiliaryDocument) else AuxiliaryVectors()


def open_auxiliary_vectors(place: Path, files: Mapping[str, Any]) -> AuxiliaryVectors:
    """Open the extras of a segment's or a document's folder, as far as their files are named.

    Raises:
        IntegrityError: If a file is missing or damaged.
    """
    return AuxiliaryVectors(
        TermWeights.open(place) if WEIGHTS in files else None,
        TokenVectors.open(place) if TOKENS in files else None,
    )


def get_readable_text(passage: Passage, end: int | None = None) -> str:
    """Return what is read of a passage: its text, after the header row of a table it goes on with.

    Args:
        passage: What is shown.
        end: Where its text is cut; by default nowhere.
    """
    text = passage.text[:end]
    return f"{passage.table_header}\n{text}" if passage.table_header else text


def format_heading_path(passage: Passage) -> str:
    """Return title and headings of a passage as lines: what it stands under, as the document says.

    What a model wrote of its place is not among them.
    """
    return "\n".join(dict.fromkeys(one for one in (passage.title, *passage.headings) if one))


def get_text_with_headings(passage: Passage) -> str:
    """Return what is judged of a passage: title and headings on a line, then what is read of it."""
    path = " > ".join(" ".join(name.split()) for name in format_heading_path(passage).split("\n"))
    return f"{path}\n{get_readable_text(passage)}" if path else get_readable_text(passage)


def list_keyword_prefixes(passage: Mapping[str, Any]) -> list[str]:
    """Return the texts beside its own that a passage's keywords are taken from, each once.

    Args:
        passage: As ``Passage.to_json`` gives it.
    """
    names = [passage["title"], *passage["headings"]]
    names += [passage.get("table_header", ""), passage.get("context", "")]
    return list(dict.fromkeys(names))


def build_embedding_texts(
    passages: Sequence[Passage], embedder: Embedder, *, with_headings: bool
) -> list[str]:
    """Return what is embedded of each passage: its prefixes as far as there is room, and its text.

    The text is always whole. Of what goes before it the outermost headings are left out first, the
    header of its table last.

    Args:
        passages: What is embedded.
        embedder: Whose tokens are counted.
        with_headings: Put the title and the headings before the text.
    """
    room = get_max_text_tokens(embedder)
    return [_add_prefixes(passage, embedder, room, with_headings) for passage in passages]


def _add_prefixes(passage: Passage, embedder: Embedder, room: int, with_headings: bool) -> str:
    path: list[str] = []
    if with_headings:
        names = [name for name in (passage.title, *passage.headings) if name.strip()]
        path = list(dict.fromkeys(" ".join(name.split()) for name in names))
    rest = [part for part in (passage.context, passage.table_header) if part]
    for first in range(len(path) + 1):
        heading = [" > ".join(path[first:])] if path[first:] else []
        if not heading and not rest:
            break
        text = "\n".join([*heading, *rest, passage.text])
        if embedder.count_tokens(text) <= room:
            return text
    if len(rest) > 1:
        text = f"{passage.table_header}\n{passage.text}"
        if embedder.count_tokens(text) <= room:
            return text
    return passage.text


def iter_postings_rows(
    lines: Iterable[bytes], analyzer: Analyzer, check: Callable[[], None] = lambda: None
) -> Iterator[PostingsRow]:
    """Yield what postings are made of for passages given as JSON, in order."""
    for number, line in enumerate(lines):
        if number % 256 == 0:
            check()
        passage: Mapping[str, Any] = json.loads(line)
        tongue = passage["language"]
        headings, heading_count = analyzer.place_terms(list_keyword_prefixes(passage), tongue)
        body, body_count = analyzer.place_terms([passage["text"]], tongue)
        yield passage["id"], headings, body, heading_count, body_count
