"""Verbatim trace of a text: its spans in a run's documents and records, and the words in none.

A verbatim span (matching span) is shown if it is maximal, has at least ``min_words`` words (or is
the whole text), and is rare: in texts of the same words in random order it would occur less than
once in a thousand.

Source: Liu et al. 2025, arXiv:2504.07096 (OLMoTrace). Differs: words instead of a model's tokens,
without case, punctuation and spacing; a span may pass the end of a sentence; every rare span is
shown instead of the rarest twentieth, because answers here are short and texts few.

The texts of a run are documents of its indexes, and records that a model learned from. Each set of
texts is named by the digest of its artifact, so that a suffix array over them is kept until one of
them changes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from filelock import FileLock
from pydantic import Field

from stillroom.errors import DataError, IntegrityError
from stillroom.jobs import cache_folder, replace_folder
from stillroom.objects.disk import full_disk_as_error
from stillroom.provenance import Artifact, digest_file, digest_json, read_artifact, resolve_parent
from stillroom.provenance.sources import (
    find_records,
    has_passages,
    is_path_parent,
    iter_documents,
    list_ancestors,
    locate_document,
)
from stillroom.records import (
    Document,
    Record,
    describe_place,
    find_record_file,
    read_records,
)
from stillroom.text.unicode import locate_words
from stillroom.text.verbatim.suffix_index import (
    IndexedText,
    Occurrences,
    SuffixIndex,
    build_suffix_index,
)

__all__ = [
    "DocumentMatch",
    "RecordMatch",
    "RunTexts",
    "VerbatimSpan",
    "VerbatimTrace",
    "find_record",
    "find_texts",
    "open_texts",
    "trace_text",
]

MIN_WORDS = 5
_MAX_CHANCE = 1e-3
_MAX_SOURCES = 5
_Folder = Annotated[str, Field(exclude=True)]
"""A folder of this machine, which no client of a server sees."""


@dataclass(frozen=True, slots=True)
class DocumentMatch:
    """A document with a span: its first place there, as bytes of the file.

    ``is_exact`` is whether the decoded bytes are the span up to case, punctuation and spacing;
    otherwise they contain it, within markup or encoded.
    """

    path: str
    byte_start: int
    byte_end: int
    is_exact: bool
    pages: tuple[int, ...]
    label: str
    digest: str
    origin: str
    places: int
    index: _Folder
    notes: tuple[str, ...]

    @property
    def place(self) -> str:
        """Its path with the bytes or the page, in words."""
        ends = self.byte_start, self.byte_end
        return describe_place(self.path, *ends, self.pages, is_exact=self.is_exact)


@dataclass(frozen=True, slots=True)
class RecordMatch:
    """A record with a span: characters of its first turn that has it, and the record's origin."""

    record: str
    turn: int
    role: str
    start: int
    end: int
    origin: str
    license: str
    method: str
    split: str
    records: _Folder


@dataclass(frozen=True, slots=True)
class VerbatimSpan:
    """Characters ``start`` to ``end`` of the traced text, and the sources that contain them.

    ``in_documents`` and ``in_records`` are numbers of sources, ``documents`` and ``records`` the
    first five of each. ``places`` is the exact number of occurrences; sources are counted in 65,536
    of them at most.
    """

    start: int
    end: int
    text: str
    words: int
    chance: float
    places: int
    in_documents: int
    in_records: int
    documents: tuple[DocumentMatch, ...]
    records: tuple[RecordMatch, ...]


@dataclass(frozen=True, slots=True)
class VerbatimTrace:
    """Spans of a text in the order of their starts, and its ``own`` character ranges.

    ``words`` counts the text's words, ``searched`` those of the texts. ``own`` are the words that
    are in no span; ``in_documents`` and ``in_records`` are words in at least one span of a document
    or record.
    """

    text: str
    words: int
    in_documents: int
    in_records: int
    own_words: int
    min_words: int
    searched: int
    spans: tuple[VerbatimSpan, ...]
    own: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def trace_text(
    text: str,
    within: Path | RunTexts,
    *,
    cited: Iterable[int] = (),
    min_words: int = MIN_WORDS,
    record: str = "",
    say: Callable[[str], None] | None = None,
) -> VerbatimTrace:
    """Return the verbatim spans of a text in what a run was made from.

    The first trace within a run builds its suffix array in the user's cache.

    ``within`` is a run, a checkpoint, an index or a set of records, or the texts found in one.
    Marks (``[1]``) of the numbers in ``cited`` are no words of the text; a span has at least
    ``min_words`` words; the record of the id ``record``, the traced one, is no source. ``say``
    receives a line before the suffix array is built.

    Raises:
        DataError: If there are no texts, or an index has tenants.
        IntegrityError: If a document is not the one that was indexed.
        MissingExtraError: If the suffix array must be built and pydivsufsort is not installed.
    """
    texts = within if isinstance(within, RunTexts) else find_texts(within)
    index = open_texts(texts, say=say)
    plain = text
    for number in set(cited):
        mark = f"[{number}]"
        plain = plain.replace(mark, " " * len(mark))
    located = locate_words(plain)
    words = [word for word, _, _ in located]
    skipped = index.find_owned(record) if record else np.zeros(0, np.int64)
    chosen = []
    for span in index.find_spans(words, without=skipped):
        length = span.end - span.start
        if length == len(words) or (length >= min_words and span.chance < _MAX_CHANCE):
            occurrences = index.find_occurrences(words[span.start : span.end], without=skipped)
            chosen.append((span, occurrences))
    reader = _SourceReader(texts, index, [occurrences for _, occurrences in chosen])
    spans = []
    for span, occurrences in chosen:
        start, end = located[span.start][1], located[span.end - 1][2]
        sources = reader.read(occurrences, words[span.start : span.end])
        length = span.end - span.start
        shown = VerbatimSpan(start, end, text[start:end], length, span.chance, *sources)
        spans.append((span.start, span.end, shown))
    return _summarize(text, located, spans, min_words, index.words, texts.notes)


def _summarize(
    text: str,
    located: Sequence[tuple[str, int, int]],
    spans: Sequence[tuple[int, int, VerbatimSpan]],
    min_words: int,
    searched: int,
    notes: tuple[str, ...],
) -> VerbatimTrace:
    in_documents = np.zeros(len(located), bool)
    in_records = np.zeros(len(located), bool)
    for start, end, span in spans:
        in_documents[start:end] |= span.in_documents > 0
        in_records[start:end] |= span.in_records > 0
    is_own = ~(in_documents | in_records)
    edges = np.flatnonzero(np.diff(is_own, prepend=False, append=False)).tolist()
    own = [
        (located[first][1], located[after - 1][2])
        for first, after in zip(edges[::2], edges[1::2], strict=True)
    ]
    return VerbatimTrace(
        text,
        len(located),
        int(in_documents.sum()),
        int(in_records.sum()),
        int(is_own.sum()),
        min_words,
        searched,
        tuple(span for _, _, span in spans),
        tuple(own),
        notes,
    )


def open_texts(texts: RunTexts, *, say: Callable[[str], None] | None = None) -> SuffixIndex:
    """Return the suffix array of a run's texts, built on first use in the user's cache."""
    folder = cache_folder() / "verbatim" / texts.key[:32]
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds the documents' words
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        try:
            return SuffixIndex(folder)
        except (OSError, ValueError):  # not built, or damaged
            if say is not None:
                say("building the suffix array of the run's texts, once")
        work = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with full_disk_as_error(work):
            build_suffix_index(work, _iter_texts(texts))
            replace_folder(work, folder)
        return SuffixIndex(folder)


class _SourceReader:
    """Reads the sources of spans; the documents of all spans are read at once."""

    def __init__(self, texts: RunTexts, index: SuffixIndex, found: Iterable[Occurrences]) -> None:
        self._texts, self._index = texts, index
        wanted: dict[int, set[str]] = {}
        for occurrences in found:
            for row in _first_by_owner(occurrences, _DOCUMENTS)[1]:
                facts = index.read_facts(int(occurrences.texts[row]))
                wanted.setdefault(facts["index"], set()).add(facts["document"])
        self._documents: dict[tuple[int, str], tuple[Document, tuple[str, ...]]] = {}
        for number, ids in wanted.items():
            folder = texts.indexes[number][0]
            for stored in iter_documents(folder, ids):
                document = Document.from_json(stored)
                _, notes = locate_document(folder, document.path, document.digest)
                self._documents[number, stored["id"]] = document, notes

    def read(
        self, found: Occurrences, words: Sequence[str]
    ) -> tuple[int, int, int, tuple[DocumentMatch, ...], tuple[RecordMatch, ...]]:
        """Return numbers of places, documents and records, and the first sources of each."""
        in_documents, some = _first_by_owner(found, _DOCUMENTS)
        documents = tuple(self._read_document(found, row, words) for row in some)
        in_records, some = _first_by_owner(found, _RECORDS)
        records = tuple(self._read_record(found, row) for row in some)
        return found.total, in_documents, in_records, documents, records

    def _read_document(self, found: Occurrences, row: int, words: Sequence[str]) -> DocumentMatch:
        facts = self._index.read_facts(int(found.texts[row]))
        folder, name = self._texts.indexes[facts["index"]][0], facts["document"]
        document, notes = self._documents.get((facts["index"], name), (None, ()))
        start, end = int(found.starts[row]), int(found.ends[row])
        if document is None or [
            word for word, _, _ in locate_words(document.text[start:end])
        ] != list(words):
            raise IntegrityError(
                f"the document {document.path if document else name} is not the one indexed",
                code="text.changed",
                where=str(folder),
                expected="the index as its artifact.json records it",
                next=f"stillroom verify {folder}",
            )
        place = document.locate(start, end)
        return DocumentMatch(
            place.path,
            place.byte_start,
            place.byte_end,
            place.is_exact,
            place.pages,
            place.label,
            place.digest,
            document.origin.kind,
            int(found.counts[row]),
            str(folder),
            notes,
        )

    def _read_record(self, found: Occurrences, row: int) -> RecordMatch:
        facts: Mapping[str, Any] = self._index.read_facts(int(found.texts[row]))
        names = ("record", "turn", "role", "origin", "license", "method", "split")
        return RecordMatch(
            start=int(found.starts[row]),
            end=int(found.ends[row]),
            records=str(self._texts.records[facts["set"]][0]),
            **{name: facts[name] for name in names},
        )


def _first_by_owner(found: Occurrences, group: int) -> tuple[int, list[int]]:
    """Return how many owners of a group have a span, and the first row of the first of them."""
    rows = np.flatnonzero(found.groups == group)
    _, first = np.unique(found.owners[rows], return_index=True)
    return len(first), [int(row) for row in rows[np.sort(first)[:_MAX_SOURCES]]]


_DOCUMENTS, _RECORDS = 0, 1
"""Groups of indexed texts."""
_FORMAT = 1
_LEARNED_ROLES = ("records", "questions", "judgments")


@dataclass(frozen=True, slots=True)
class RunTexts:
    """Folders of indexes, and folders or files of records, each with its digest.

    ``notes`` name texts that are not searched, and why.
    """

    indexes: tuple[tuple[Path, str], ...]
    records: tuple[tuple[Path, str], ...]
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Digest of all texts, in their order."""
        digests = [[digest for _, digest in some] for some in (self.indexes, self.records)]
        return digest_json([_FORMAT, *digests])


def find_texts(*within: Path) -> RunTexts:
    """Return the texts that runs, checkpoints, indexes or sets of records were made from.

    Records are those that a checkpoint of the lineage learned from; without a checkpoint, all.

    Raises:
        DataError: If there are none.
    """
    indexes: dict[Path, str] = {}
    records: dict[Path, str] = {}
    learned: dict[Path, str] = {}
    notes = []
    ancestors = {folder: artifact for path in within for folder, artifact in list_ancestors(path)}
    for folder, artifact in ancestors.items():
        if artifact.kind == "index":
            if has_passages(folder):
                indexes[folder] = artifact.digest
            else:
                notes.append(
                    f"the index {folder.name} keeps its documents in a database: they are not "
                    "searched"
                )
        elif artifact.kind == "records":
            records[folder] = artifact.digest
        elif artifact.kind == "checkpoint":
            learned |= _list_learned(folder, artifact)
    if not indexes and not records and not learned and not notes:
        for path in within:
            try:
                learned[path] = digest_file(find_record_file(path))
            except DataError as error:
                raise DataError(
                    f"{path} has no documents and no records to search",
                    code="data.no-texts",
                    where=str(path),
                    expected="a run, an index, a checkpoint of a job, or a set of records",
                    next=f"stillroom show {path} --lineage",
                ) from error
    return RunTexts(tuple(indexes.items()), tuple((learned or records).items()), tuple(notes))


def _list_learned(folder: Path, artifact: Artifact) -> dict[Path, str]:
    """Return the records that a checkpoint learned from, with their digests."""
    found = {}
    for parent in artifact.parents:
        if parent.role not in _LEARNED_ROLES or not is_path_parent(parent):
            continue
        path = resolve_parent(folder, parent)
        try:
            found[path] = read_artifact(path).digest
        except DataError:  # a file from elsewhere
            if path.is_file():
                found[path] = digest_file(path)
    return found


def _iter_texts(texts: RunTexts) -> Iterator[IndexedText]:
    """Yield each document, then each turn of each record.

    Raises:
        DataError: If an index has tenants, or a file is damaged.
    """
    for number, (folder, _) in enumerate(texts.indexes):
        for row in iter_documents(folder):
            facts = {"index": number, "document": row["id"]}
            yield IndexedText(row["text"], f"{number}:{row['id']}", _DOCUMENTS, facts)
    for number, (path, _) in enumerate(texts.records):
        for record in read_records(find_record_file(path), on_drop=lambda _number, _reason: None):
            yield from _iter_turns(number, record)


def _iter_turns(number: int, record: Record) -> Iterator[IndexedText]:
    chain = record.origin.chain
    for turn, message in enumerate(record.messages):
        facts = {
            "set": number,
            "record": record.id,
            "turn": turn,
            "role": message.role,
            "origin": record.origin.kind,
            "license": record.origin.license,
            "method": chain[-1].method if chain else "",
            "split": str(record.fields.get("split", "")),
        }
        yield IndexedText(message.content, record.id, _RECORDS, facts)


def find_record(path: Path, record_id: str) -> Record:
    """Return a record of a file of records, of an artifact, or of what it was made from.

    Raises:
        DataError: If there is none of that id.
    """
    folders = [folder for folder, artifact in list_ancestors(path) if artifact.kind == "records"]
    for place in folders or [path]:
        for record in find_records(place, record_id):
            return record
    raise DataError(
        f"{record_id} is not in {path}",
        code="data.no-such-record",
        where=str(path),
        expected="the id of a record in this artifact or one it was made from",
        next=f"stillroom show {path} --lineage shows some",
    )
