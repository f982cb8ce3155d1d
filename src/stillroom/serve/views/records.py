"""Records of an artifact, page by page: kept and dropped, filtered, each with what was decided.

A file is read row by row at every request, so that thousands cost time and no memory. Of what
was made from an index with tenants, whoever asks as one of them is shown the records whose passages
they may see; whoever asks as nobody, none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.provenance import read_artifact
from stillroom.provenance.sources import (
    holds_passages,
    iter_objects,
    list_ancestors,
    names_path,
    resolve_parent,
)
from stillroom.records import Record, read_records
from stillroom.serve.reviews import Decision, Review
from stillroom.serve.views.found import Found, find_inside, list_found, name_of, read_found
from stillroom.serve.views.lineage import come_from_tenants
from stillroom.serve.views.sources import Sources
from stillroom.synth.browsing import Row, read_rows

if TYPE_CHECKING:
    from stillroom.rag.index import Index

__all__ = [
    "Entry",
    "RecordSet",
    "RecordsPage",
    "Wanted",
    "list_records_of",
    "list_sets",
    "open_set",
]

PAGE = 20
_DROPPED = "output/dropped.jsonl"
_PASSAGE = "pas-"
_HIDDEN: list[str] = []


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a reader asks for: kept or dropped, words, origin, reason, decision, and the page."""

    show: str = "kept"
    words: str = ""
    origin: str = ""
    reason: str = ""
    decision: str = ""
    page: int = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One record, kept or dropped, with its latest decision.

    ``key`` names it in the review: its id, or ``dropped-NUMBER``; ``says`` are role and text of
    each turn, as they are now; ``can_decide`` is false where a dropped row holds no record.
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
    decision: Decision | None = None
    decided: int = 0
    can_decide: bool = True


@dataclass(frozen=True, slots=True)
class RecordsPage:
    """Some of the entries, how many there are in all, and counts of what can be filtered by."""

    entries: tuple[Entry, ...]
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


def list_sets(sources: Sources) -> list[Found]:
    """Return the artifacts of records in the folder that are shown to the asker, newest first."""
    return [
        one
        for one in list_found(sources.root)
        if one.kind == "records" and _find_guards(sources, one.name) is not _HIDDEN
    ]


class RecordSet:
    """An artifact of records, as far as one asker may see it."""

    def __init__(self, folder: Path, indexes: Sequence[Index] | None = None) -> None:
        """Show all, or those records alone whose passages some indexes show the asker."""
        self.folder, self._indexes = folder, indexes
        self._known: dict[str, bool] = {}

    @property
    def is_guarded(self) -> bool:
        """Whether some of it may be hidden."""
        return self._indexes is not None

    def shows(self, record: Record) -> bool:
        """Return whether a record is shown: of a guarded set, where all its passages are."""
        if self._indexes is None:
            return True
        named = {one for link in record.origin.chain for one in link.parents if one[:4] == _PASSAGE}
        evidence = record.fields.get("evidence")
        if isinstance(evidence, Mapping):
            named.add(str(evidence.get("passage_id", "")))
        return self._see(named)

    def shows_row(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row of what was dropped is shown."""
        if self._indexes is None:
            return True
        record = _record_of(row)
        unit = str(row.get("unit", "")).partition("#")[0]
        return self.shows(record) if record is not None else self._see({unit})

    def keys(self) -> set[str]:
        """Return the keys of all that is shown."""
        kept = {one.id for one in self.records()}
        return kept | {key for key, _, _ in self.dropped()}

    def records(self) -> Iterator[Record]:
        """Yield what was kept and is shown."""
        rows = read_records(self.folder / "output", on_drop=lambda _number, _reason: None)
        return (one for one in rows if self.shows(one))

    def dropped(self) -> Iterator[tuple[str, Row, Mapping[str, Any]]]:
        """Yield key, row and JSON object of what was dropped and is shown."""
        path = self.folder / _DROPPED
        if not path.is_file():
            return
        for number, (row, raw) in enumerate(zip(read_rows(path), iter_objects(path), strict=True)):
            if self.shows_row(raw):
                yield f"dropped-{number}", row, raw

    def _see(self, passages: set[str]) -> bool:
        """Return whether the asker may see all of some passages; none are nobody's."""
        return bool(passages) and all(map(self._see_one, passages))

    def _see_one(self, passage: str) -> bool:
        if passage not in self._known:
            self._known[passage] = any(_holds(one, passage) for one in self._indexes or ())
        return self._known[passage]


@contextmanager
def open_set(sources: Sources, name: str) -> Iterator[RecordSet]:
    """Hold an artifact of records open until the body ends.

    Args:
        sources: The indexes of the folder, as the asker sees them.
        name: The artifact's.

    Raises:
        DataError: If it is none, or holds words of tenants and nobody asks, or their index is not
            in the folder.
    """
    if read_found(sources.root, name).kind != "records":
        raise DataError(
            f"{name!r:.200} holds no records",
            code="data.wrong-kind",
            expected="an artifact of records",
            next="choose one on the page Records",
        )
    folder, guards = find_inside(sources.root, name), _find_guards(sources, name)
    if guards is _HIDDEN:
        raise DataError(
            "these records were made from an index with tenants: they hold words of all of them",
            code="rag.access-needed",
            expected="one who asks, and the index in the folder; or records that all may see",
            next="start the console with --tenant NAME, on a folder that holds the index",
        )
    with ExitStack() as opened:
        seen = [opened.enter_context(sources.seen(one)) for one in guards or ()]
        yield RecordSet(folder, None if guards is None else seen)


def _find_guards(sources: Sources, name: str) -> list[str] | None:
    """Return the indexes that say which records are shown; None where all are.

    ``_HIDDEN`` where none is: nobody asks, or an index cannot be asked, since it is elsewhere.
    """
    folder = find_inside(sources.root, name)
    if not come_from_tenants(folder):
        return None
    indexes = [
        name_of(sources.root, place)
        for place, artifact in list_ancestors(folder)
        if artifact.kind == "index" and holds_passages(place)
    ]
    return indexes if sources.access is not None and all(indexes) else _HIDDEN


def list_records_of(sources: Sources, name: str, wanted: Wanted, review: Review) -> RecordsPage:
    """Return one page of an artifact's records; behind the end, the last.

    Raises:
        DataError: If it is no artifact of records or not shown to the asker, or a row is broken.
    """
    with open_set(sources, name) as opened:
        return _list(sources.root, opened, wanted, review)


def _list(root: Path, opened: RecordSet, wanted: Wanted, review: Review) -> RecordsPage:
    origins: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    decisions: Counter[str] = Counter()
    counts = {"kept": 0, "dropped": 0}
    found: list[Entry] = []
    total, page = 0, max(1, wanted.page)
    for show, entry in _entries(opened, review):
        counts[show] += 1
        if entry.decision is not None:
            decisions[entry.decision.action] += 1
        if show != wanted.show:
            continue
        origins[entry.origin] += 1
        reasons[entry.reason] += 1
        if not _fits(entry, wanted):
            continue
        if total < page * PAGE:  # the page that is asked for, or the last that there is
            if total % PAGE == 0:
                found.clear()
            found.append(entry)
        total += 1
    pages = max(1, -(-total // PAGE))
    return RecordsPage(
        tuple(found),
        total,
        pages,
        min(page, pages),
        counts["kept"],
        counts["dropped"],
        {key: count for key, count in origins.most_common() if key},
        {key: count for key, count in reasons.most_common() if key},
        decisions,
        _index_of(root, opened.folder),
        opened.is_guarded,
    )


def _entries(opened: RecordSet, review: Review) -> Iterator[tuple[str, Entry]]:
    for record in opened.records():
        yield "kept", _of_record(record, review)
    for key, row, raw in opened.dropped():
        yield "dropped", _of_row(row, raw, key, review)


def _of_record(record: Record, review: Review) -> Entry:
    decision, count = review.latest(record.id)
    messages = decision.messages if decision and decision.messages else None
    evidence = record.fields.get("evidence")
    chain = record.origin.chain
    return Entry(
        record.id,
        messages or tuple((one.role, one.content) for one in record.messages),
        record.origin.kind,
        record.origin.license,
        chain[-1].method if chain else "",
        str(record.fields.get("split", "")),
        str(evidence.get("passage_id", "")) if isinstance(evidence, Mapping) else "",
        decision=decision,
        decided=count,
    )


def _of_row(row: Row, raw: Mapping[str, Any], key: str, review: Review) -> Entry:
    decision, count = review.latest(key)
    record = _record_of(raw)
    base = _of_record(record, review) if record is not None else None
    return Entry(
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


def _record_of(row: Mapping[str, Any]) -> Record | None:
    """Return the record that a row of what was dropped holds, if it holds a whole one."""
    data = row.get("record")
    return Record.from_json(data) if isinstance(data, dict) and "messages" in data else None


def _holds(index: Index, passage: str) -> bool:
    try:
        index.row_of(passage)
    except DataError:
        return False
    return True


def _fits(entry: Entry, wanted: Wanted) -> bool:
    decided = entry.decision.action if entry.decision else "none"
    if wanted.origin not in {"", entry.origin} or wanted.decision not in {"", decided}:
        return False
    if wanted.reason not in {"", entry.reason}:
        return False
    words = wanted.words.casefold()
    return not words or any(words in text.casefold() for _, text in entry.says)


def _index_of(root: Path, folder: Path) -> str:
    """Return the name of the index that the records were made from, or an empty text."""
    for parent in read_artifact(folder).parents:
        if parent.kind == "index" and names_path(parent):
            return name_of(root, resolve_parent(folder, parent))
    return ""
