"""Pages of kept and dropped records with filters, and a comparison of generators.

A file is read row by row at every request, so that large files cost time but no memory. Of an
artifact derived from an index with tenants, a tenant sees the records whose passages it may see; a
client without a tenant sees none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.provenance import read_artifact
from stillroom.provenance.sources import (
    has_passages,
    is_path_parent,
    iter_objects,
    list_ancestors,
    resolve_parent,
)
from stillroom.records import Record, read_records
from stillroom.serve.views.folder import (
    FolderArtifact,
    list_folder_artifacts,
    read_folder_artifact,
    resolve_name,
    to_name,
)
from stillroom.serve.views.lineage import has_tenant_sources
from stillroom.serve.views.reviews import ReviewDecision, ReviewLog
from stillroom.serve.views.sources import Sources
from stillroom.synth.output.rejected import RejectedRow, read_rejected

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index

__all__ = [
    "GeneratorSummary",
    "RecordEntry",
    "RecordSet",
    "RecordsPage",
    "RecordsQuery",
    "compare_generators",
    "list_record_sets",
    "list_records",
    "open_record_set",
]

PAGE_SIZE = 20
_DROPPED_FILE = "output/dropped.jsonl"
_PASSAGE_PREFIX = "pas-"
_HIDDEN: list[str] = []


@dataclass(frozen=True, slots=True)
class RecordsQuery:
    """Filters and page: kept or dropped, words, origin, reason, decision."""

    show: str = "kept"
    words: str = ""
    origin: str = ""
    reason: str = ""
    decision: str = ""
    page: int = 1


@dataclass(frozen=True, slots=True)
class RecordEntry:
    """One record, kept or dropped, with its latest decision.

    ``key`` names it in the review: its id, or ``dropped-NUMBER``; ``says`` are role and text of
    each turn, with edits applied; ``can_decide`` is false for a dropped row without a record.
    """

    key: str
    says: tuple[tuple[str, str], ...]
    origin: str
    license: str
    generator: str
    split: str
    passage: str
    reason: str = ""
    method: str = ""
    score: float | None = None
    limit: float | None = None
    against: str = ""
    decision: ReviewDecision | None = None
    decided: int = 0
    can_decide: bool = True


@dataclass(frozen=True, slots=True)
class RecordsPage:
    """Page of entries, with the total and the counts for each filter."""

    entries: tuple[RecordEntry, ...]
    total: int
    pages: int
    page: int
    kept: int
    dropped: int
    origins: Mapping[str, int]
    reasons: Mapping[str, int]
    decisions: Mapping[str, int] = field(default_factory=dict)
    index: str = ""
    is_guarded: bool = False


def list_record_sets(sources: Sources) -> list[FolderArtifact]:
    """Return the artifacts of records that are visible to the client, newest first."""
    return [
        artifact
        for artifact in list_folder_artifacts(sources.root)
        if artifact.kind == "records"
        and _find_guarding_indexes(sources, artifact.name) is not _HIDDEN
    ]


class RecordSet:
    """Artifact of records, restricted to those visible to one client."""

    def __init__(self, folder: Path, indexes: Sequence[Index] | None = None) -> None:
        """Show all records, or those whose passages the given indexes show to the client."""
        self.folder, self._indexes = folder, indexes
        self._known: dict[str, bool] = {}

    @property
    def is_guarded(self) -> bool:
        """Whether some records may be hidden."""
        return self._indexes is not None

    def shows(self, record: Record) -> bool:
        """Return whether a record is visible: in a guarded set, if all its passages are."""
        if self._indexes is None:
            return True
        named = {
            parent
            for link in record.origin.chain
            for parent in link.parents
            if parent[:4] == _PASSAGE_PREFIX
        }
        evidence = record.fields.get("evidence")
        if isinstance(evidence, Mapping):
            named.add(str(evidence.get("passage_id", "")))
        return self._see(named)

    def shows_row(self, row: Mapping[str, Any]) -> bool:
        """Return whether a dropped row is visible."""
        if self._indexes is None:
            return True
        record = _parse_record(row)
        unit = str(row.get("unit", "")).partition("#")[0]
        return self.shows(record) if record is not None else self._see({unit})

    def keys(self) -> set[str]:
        """Return the keys of all visible records and rows."""
        ids = {record.id for record in self.records()}
        return ids | {key for key, _, _ in self.dropped()}

    def records(self) -> Iterator[Record]:
        """Yield the visible kept records."""
        rows = read_records(self.folder / "output", on_drop=lambda _number, _reason: None)
        return (record for record in rows if self.shows(record))

    def dropped(self) -> Iterator[tuple[str, RejectedRow, Mapping[str, Any]]]:
        """Yield key, row and JSON object of the visible dropped rows."""
        path = self.folder / _DROPPED_FILE
        if not path.is_file():
            return
        for number, (row, raw) in enumerate(
            zip(read_rejected(path), iter_objects(path), strict=True)
        ):
            if self.shows_row(raw):
                yield f"dropped-{number}", row, raw

    def _see(self, passages: set[str]) -> bool:
        """Return whether the client may see all of the passages; False for an empty list."""
        return bool(passages) and all(map(self._see_one, passages))

    def _see_one(self, passage: str) -> bool:
        if passage not in self._known:
            rows = (index.find_row(passage) for index in self._indexes or ())
            self._known[passage] = any(row is not None for row in rows)
        return self._known[passage]


@contextmanager
def open_record_set(sources: Sources, name: str) -> Iterator[RecordSet]:
    """Open an artifact of records until the body ends.

    Raises:
        DataError: If it is not an artifact of records, or it holds text of tenants and the client
            names none or their index is not in the folder.
    """
    if read_folder_artifact(sources.root, name).kind != "records":
        raise DataError(
            f"{name!r:.200} holds no records",
            code="data.wrong-kind",
            expected="an artifact of records",
            next="choose one on the page Records",
        )
    folder, guards = resolve_name(sources.root, name), _find_guarding_indexes(sources, name)
    if guards is _HIDDEN:
        raise DataError(
            "these records derive from an index with tenants: they hold text of all tenants",
            code="rag.access-needed",
            expected="a tenant, and its index in the folder; or records that everyone may see",
            next="start the console with --tenant NAME, on a folder that contains the index",
        )
    with ExitStack() as opened:
        indexes = [opened.enter_context(sources.seen(guard)) for guard in guards or ()]
        yield RecordSet(folder, None if guards is None else indexes)


def _find_guarding_indexes(sources: Sources, name: str) -> list[str] | None:
    """Return the indexes that decide which records are visible; None if all are.

    ``_HIDDEN`` if none are: the client names no tenant, or an index lies elsewhere.
    """
    folder = resolve_name(sources.root, name)
    if not has_tenant_sources(folder):
        return None
    indexes = [
        to_name(sources.root, ancestor)
        for ancestor, artifact in list_ancestors(folder)
        if artifact.kind == "index" and has_passages(ancestor)
    ]
    return indexes if sources.access is not None and all(indexes) else _HIDDEN


def list_records(
    sources: Sources, name: str, query: RecordsQuery, review: ReviewLog
) -> RecordsPage:
    """Return one page of an artifact's records; a page after the end is the last one.

    Raises:
        DataError: If it is not an artifact of records or not visible, or a row is invalid.
    """
    with open_record_set(sources, name) as opened:
        return _list_page(sources.root, opened, query, review)


def _list_page(
    root: Path, opened: RecordSet, query: RecordsQuery, review: ReviewLog
) -> RecordsPage:
    origins: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    decisions: Counter[str] = Counter()
    counts = {"kept": 0, "dropped": 0}
    entries: list[RecordEntry] = []
    total, page = 0, max(1, query.page)
    for show, entry in _iter_entries(opened, review):
        counts[show] += 1
        if entry.decision is not None:
            decisions[entry.decision.action] += 1
        if show != query.show:
            continue
        origins[entry.origin] += 1
        reasons[entry.reason] += 1
        if not _matches_query(entry, query):
            continue
        if total < page * PAGE_SIZE:  # the requested page, or the last one
            if total % PAGE_SIZE == 0:
                entries.clear()
            entries.append(entry)
        total += 1
    pages = max(1, -(-total // PAGE_SIZE))
    return RecordsPage(
        tuple(entries),
        total,
        pages,
        min(page, pages),
        counts["kept"],
        counts["dropped"],
        {key: count for key, count in origins.most_common() if key},
        {key: count for key, count in reasons.most_common() if key},
        decisions,
        _find_source_index(root, opened.folder),
        opened.is_guarded,
    )


def _iter_entries(opened: RecordSet, review: ReviewLog) -> Iterator[tuple[str, RecordEntry]]:
    for record in opened.records():
        yield "kept", _build_record_entry(record, review)
    for key, row, raw in opened.dropped():
        yield "dropped", _build_row_entry(row, raw, key, review)


def _build_record_entry(record: Record, review: ReviewLog) -> RecordEntry:
    decision, count = review.latest(record.id)
    messages = decision.messages if decision and decision.messages else None
    evidence = record.fields.get("evidence")
    chain = record.origin.chain
    return RecordEntry(
        record.id,
        messages or tuple((message.role, message.content) for message in record.messages),
        record.origin.kind,
        record.origin.license,
        chain[-1].method if chain else "",
        str(record.fields.get("split", "")),
        str(evidence.get("passage_id", "")) if isinstance(evidence, Mapping) else "",
        decision=decision,
        decided=count,
    )


def _build_row_entry(
    row: RejectedRow, raw: Mapping[str, Any], key: str, review: ReviewLog
) -> RecordEntry:
    decision, count = review.latest(key)
    record = _parse_record(raw)
    base = _build_record_entry(record, review) if record is not None else None
    return RecordEntry(
        key,
        (decision.messages if decision and decision.messages else None) or row.says,
        base.origin if base else "",
        base.license if base else "",
        base.generator if base else "",
        row.split,
        base.passage if base else str(raw.get("unit", "")).partition("#")[0],
        row.reason,
        row.method,
        row.score,
        row.limit,
        row.against,
        decision,
        count,
        record is not None,
    )


def _parse_record(row: Mapping[str, Any]) -> Record | None:
    """Return the record of a dropped row, if it holds a complete one."""
    data = row.get("record")
    return Record.from_json(data) if isinstance(data, dict) and "messages" in data else None


def _matches_query(entry: RecordEntry, query: RecordsQuery) -> bool:
    decided = entry.decision.action if entry.decision else "none"
    if query.origin not in {"", entry.origin} or query.decision not in {"", decided}:
        return False
    if query.reason not in {"", entry.reason}:
        return False
    words = query.words.casefold()
    return not words or any(words in text.casefold() for _, text in entry.says)


def _find_source_index(root: Path, folder: Path) -> str:
    """Return the name of the index that the records derive from; empty if there is none."""
    for parent in read_artifact(folder).parents:
        if parent.kind == "index" and is_path_parent(parent):
            return to_name(root, resolve_parent(folder, parent))
    return ""


_WORD = re.compile(r"\w+")
_MAX_EXAMPLES = 3
_NO_GENERATOR = "no generator"


@dataclass
class GeneratorSummary:
    """Records of one generator in one artifact.

    ``words_asked`` and ``words_answered`` are means; ``distinct`` is the share of distinct bigrams
    of the questions (distinct-2); ``rejected`` counts decisions of reviewers.
    """

    name: str
    generator: str
    kept: int = 0
    dropped: int = 0
    rejected: int = 0
    words_asked: float = 0.0
    words_answered: float = 0.0
    distinct: float = 0.0
    reasons: list[tuple[str, int]] = field(default_factory=list)
    examples: list[tuple[tuple[str, str], ...]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of generated records that were kept."""
        written = self.kept + self.dropped
        return self.kept / written if written else 0.0


def compare_generators(sources: Sources, name: str, review: ReviewLog) -> list[GeneratorSummary]:
    """Return statistics of each generator of an artifact, and of records without one.

    Dropped rows without a record count for the artifact's only generator, if there is just one.

    Raises:
        DataError: If it is not an artifact of records, or not visible to the client.
    """
    with open_record_set(sources, name) as opened:
        return _compare_opened(opened, name, review)


def _compare_opened(opened: RecordSet, name: str, review: ReviewLog) -> list[GeneratorSummary]:
    tallies: dict[str, _GeneratorTally] = {}
    for record in opened.records():
        decision, _ = review.latest(record.id)
        is_rejected = decision is not None and decision.action == "reject"
        tallies.setdefault(_find_generator(record), _GeneratorTally()).keep(
            record, is_rejected=is_rejected
        )
    fallen: Counter[tuple[str, str]] = Counter()
    for _, _, row in opened.dropped():
        whole = _parse_record(row)
        generator = _find_generator(whole) if whole is not None else ""
        fallen[generator, str(row.get("reason", ""))] += 1
    named = [generator for generator in tallies if generator != _NO_GENERATOR]
    only = named[0] if len(named) == 1 else _NO_GENERATOR
    for (generator, reason), count in fallen.items():
        tallies.setdefault(generator or only, _GeneratorTally()).reasons[reason] += count
    return [tally.sum_up(name, generator) for generator, tally in sorted(tallies.items())]


class _GeneratorTally:
    def __init__(self) -> None:
        self.kept = self.rejected = self.asked = self.answered = self.pairs = 0
        self.seen: set[tuple[str, str]] = set()
        self.reasons: Counter[str] = Counter()
        self.examples: list[tuple[tuple[str, str], ...]] = []

    def keep(self, record: Record, *, is_rejected: bool) -> None:
        self.kept += 1
        self.rejected += is_rejected
        turns = [(message.role, message.content) for message in record.messages]
        question_words = [
            word for role, text in turns if role == "user" for word in _split_words(text)
        ]
        self.asked += len(question_words)
        self.answered += sum(len(_split_words(text)) for role, text in turns if role == "assistant")
        pairs = list(pairwise(question_words))
        self.pairs += len(pairs)
        self.seen.update(pairs)
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(tuple(turns))

    def sum_up(self, name: str, generator: str) -> GeneratorSummary:
        count = self.kept or 1
        return GeneratorSummary(
            name,
            generator,
            self.kept,
            sum(self.reasons.values()),
            self.rejected,
            self.asked / count,
            self.answered / count,
            len(self.seen) / self.pairs if self.pairs else 0.0,
            self.reasons.most_common(_MAX_EXAMPLES),
            self.examples,
        )


def _find_generator(record: Record) -> str:
    chain = [link.method for link in record.origin.chain if "generators" in link.method]
    return chain[-1] if chain else _NO_GENERATOR


def _split_words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
