"""Documents staged for an index: metadata, digests, and the text embedded (title, headings, body).

A staged document was parsed in this run, is taken over from an existing index, or is taken over
under another path. Its metadata (fields, tenant, labels) does not come from its bytes.

Auxiliary vectors are learned term weights and token vectors; a document carries them from the
encoder to the segment that stores them.

Title, headings, table header and context are embedded before the text as far as the embedder has
room, and are matched by keywords. None of them is cited as the passage's words; a model that
answers is shown title, headings and table header, but not the context.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from stillroom.models.encoders.text_encoder import get_max_text_tokens
from stillroom.provenance import digest_bytes
from stillroom.rag.search_engines.keyword import PostingsRow
from stillroom.rag.search_engines.late_interaction import TOKENS, TokenVectors
from stillroom.rag.search_engines.sparse import WEIGHTS, TermWeights
from stillroom.records import Document, Origin, Passage
from stillroom.text.chunking.boundaries import find_defined_terms
from stillroom.text.interfaces import SourceFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.rag.analysis.analyzer import Analyzer

__all__ = [
    "AuxiliaryVectors",
    "DocumentEntry",
    "DocumentMetadata",
    "EmbeddingDigest",
    "RankedRows",
    "RenamedDocument",
    "StagedDocument",
    "build_embedding_texts",
    "can_rename",
    "digest_content",
    "encode_json_line",
    "format_heading_path",
    "get_readable_text",
    "get_text_with_headings",
    "iter_postings_rows",
    "list_keyword_prefixes",
    "open_auxiliary_vectors",
]


RankedRows = Sequence[tuple[int, float]]
"""Rows of an index with scores, best first, without repeats."""


@dataclass(frozen=True, slots=True)
class DocumentEntry:
    """Entry of a document in an index; ``truncated`` counts its truncated passages."""

    path: str
    digest: str
    passages: int
    truncated: int


@dataclass(frozen=True, slots=True)
class EmbeddingDigest:
    """Digest of a passage's embedded text, and whether the embedder truncated it."""

    embedded: bytes
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class DocumentMetadata:
    """Metadata of a document that does not come from its bytes.

    ``labels`` name who may read it where an index has tenants; without labels nobody may.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    tenant: str = ""
    labels: tuple[str, ...] = ()


class StagedDocument(Protocol):
    """A document ready for an index: text, passages and vectors."""

    @property
    def entry(self) -> DocumentEntry:
        """The document's entry in the index."""

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""

    def marks(self) -> Sequence[EmbeddingDigest]:
        """Return the digest of each passage's embedded text."""

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""

    def extras(self) -> AuxiliaryVectors:
        """Return the passages' term weights and token vectors; empty without any."""


@dataclass(frozen=True, slots=True)
class RenamedDocument:
    """A staged document under another path: same bytes, text and vectors, other ids."""

    part: StagedDocument
    path: str

    @property
    def entry(self) -> DocumentEntry:
        """The document's entry in the index."""
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
            renamed = replace(
                passage,
                document_id=document_id,
                location=replace(passage.location, path=self.path),
                origin=_rename_origin(passage.origin, passage.document_id, document_id),
            )
            lines.append(encode_json_line(renamed.to_json()))
        return lines

    def marks(self) -> Sequence[EmbeddingDigest]:
        """Return the digest of each passage's embedded text."""
        return self.part.marks()

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""
        return self.part.vectors()

    def extras(self) -> AuxiliaryVectors:
        """Return the auxiliary vectors of the passages."""
        return self.part.extras()

    def _document(self) -> Document:
        document = Document.from_json(json.loads(self.part.document_line()))
        return replace(document, path=self.path)


def can_rename(part: StagedDocument, path: str) -> bool:
    """Return whether the same bytes under another path would be parsed to the same text.

    They would not where the suffix names another format, or where the file name serves as title.
    """
    old_path = part.entry.path
    if PurePosixPath(old_path).suffix.lower() != PurePosixPath(path).suffix.lower():
        return False
    before, after = SourceFile(old_path, "").stem, SourceFile(path, "").stem
    return before == after or json.loads(part.document_line())["title"] != before


def _rename_origin(origin: Origin, old_id: str, new_id: str) -> Origin:
    """Return an origin whose chain names the document by its new id."""
    chain = tuple(
        replace(
            link, parents=tuple(new_id if parent == old_id else parent for parent in link.parents)
        )
        for link in origin.chain
    )
    return replace(origin, chain=chain)


def digest_content(document: bytes, passages: Sequence[bytes]) -> str:
    """Return the digest of a document and its passages."""
    return digest_bytes(b"\n".join([document, *passages]))


def encode_json_line(value: Mapping[str, Any]) -> bytes:
    """Return a value as one line of JSON, without the line end."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class AuxiliaryVectors:
    """Term weights and token vectors of the same passages, or None."""

    weights: TermWeights | None = None
    tokens: TokenVectors | None = None

    def span(self, first: int, last: int) -> AuxiliaryVectors:
        """Return the vectors of the passages from ``first`` up to ``last``."""
        return AuxiliaryVectors(
            self.weights.span(first, last) if self.weights is not None else None,
            self.tokens.span(first, last) if self.tokens is not None else None,
        )


def open_auxiliary_vectors(folder: Path, files: Collection[str] | None = None) -> AuxiliaryVectors:
    """Open the auxiliary vectors in the folder of a segment or a document.

    ``files`` are the names of those that must be there; by default those that are.

    Raises:
        IntegrityError: If a file is missing or damaged.
    """
    names = {path.name for path in folder.iterdir()} if files is None else files
    return AuxiliaryVectors(
        TermWeights.open(folder) if WEIGHTS in names else None,
        TokenVectors.open(folder) if TOKENS in names else None,
    )


def get_readable_text(passage: Passage, end: int | None = None) -> str:
    """Return the text of a passage, after the header row of a table that it continues.

    ``end`` cuts the text; by default its end.
    """
    text = passage.text[:end]
    return f"{passage.table_header}\n{text}" if passage.table_header else text


def format_heading_path(passage: Passage) -> str:
    """Return title and headings of a passage, one per line, without the generated context."""
    return "\n".join(dict.fromkeys(name for name in (passage.title, *passage.headings) if name))


def get_text_with_headings(passage: Passage) -> str:
    """Return title and headings on one line, then the readable text of a passage."""
    path = " > ".join(" ".join(name.split()) for name in format_heading_path(passage).split("\n"))
    return f"{path}\n{get_readable_text(passage)}" if path else get_readable_text(passage)


def list_keyword_prefixes(passage: Mapping[str, Any]) -> list[str]:
    """Return title, headings, table header, context, defined terms of a passage, without repeats.

    Keywords are taken from them as from the text. A defined term is part of the text, too, so that
    its words count twice as much as those of its definition.
    """
    text = passage["text"]
    names = [passage["title"], *passage["headings"]]
    names += [passage.get("table_header", ""), passage.get("context", "")]
    names += [text[start:end].strip() for start, end in find_defined_terms(text)]
    return list(dict.fromkeys(names))


def build_embedding_texts(
    passages: Sequence[Passage], embedder: Embedder, *, with_headings: bool
) -> list[str]:
    """Return each passage's text to embed: its prefixes as far as there is room, and its text.

    The text is always complete. The outermost headings are left out first, the header of the table
    last.
    """
    room = get_max_text_tokens(embedder)
    return [_add_prefixes(passage, embedder, room, with_headings) for passage in passages]


def _add_prefixes(passage: Passage, embedder: Embedder, room: int, with_headings: bool) -> str:
    path: list[str] = []
    if with_headings:
        names = [name for name in (passage.title, *passage.headings) if name.strip()]
        path = list(dict.fromkeys(" ".join(name.split()) for name in names))
    prefixes = [part for part in (passage.context, passage.table_header) if part]
    for first in range(len(path) + 1):
        heading = [" > ".join(path[first:])] if path[first:] else []
        if not heading and not prefixes:
            break
        text = "\n".join([*heading, *prefixes, passage.text])
        if embedder.count_tokens(text) <= room:
            return text
    if len(prefixes) > 1:
        text = f"{passage.table_header}\n{passage.text}"
        if embedder.count_tokens(text) <= room:
            return text
    return passage.text


def iter_postings_rows(
    lines: Iterable[bytes], analyzer: Analyzer, check: Callable[[], None] = lambda: None
) -> Iterator[PostingsRow]:
    """Yield the postings of passages given as lines of JSON, in order."""
    for number, line in enumerate(lines):
        if number % 256 == 0:
            check()
        passage: Mapping[str, Any] = json.loads(line)
        language = passage["language"]
        headings, heading_count = analyzer.get_positioned_terms(
            list_keyword_prefixes(passage), language
        )
        body, body_count = analyzer.get_positioned_terms([passage["text"]], language)
        yield passage["id"], headings, body, heading_count, body_count
