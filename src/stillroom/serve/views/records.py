"""Records of an artifact, page by page: kept and dropped, filtered, each with what was decided.

A file is read row by row at every request, so that thousands cost time and no memory. What was made
from an index with tenants is not shown: its records hold words of all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.provenance import read_artifact
from stillroom.provenance.sources import iter_objects, names_path, resolve_parent
from stillroom.records import Record, read_records
from stillroom.serve.reviews import Decision, Review
from stillroom.serve.views.found import Found, find_inside, list_found, name_of, read_found
from stillroom.serve.views.lineage import come_from_tenants
from stillroom.synth.browsing import Row, read_rows

__all__ = ["Entry", "RecordsPage", "Wanted", "list_records_of", "list_sets", "open_set"]

PAGE = 20
_DROPPED = "output/dropped.jsonl"


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


def list_sets(root: Path) -> list[Found]:
    """Return the artifacts of records in the folder, newest first."""
    return [one for one in list_found(root) if one.kind == "records"]


def open_set(root: Path, name: str) -> Path:
    """Return the folder of an artifact of records.

    Raises:
        DataError: If it is none, or holds words of tenants.
    """
    if read_found(root, name).kind != "records":
        raise DataError(
            f"{name!r:.200} holds no records",
            code="data.wrong-kind",
            expected="an artifact of records",
            next="choose one on the page Records",
        )
    folder = find_inside(root, name)
    if come_from_tenants(folder):
        raise DataError(
            "these records were made from an index with tenants: they hold words of all of them",
            code="rag.access-needed",
            expected="records whose sources all may see",
            next="ask the index itself, as one of its tenants",
        )
    return folder


def list_records_of(root: Path, name: str, wanted: Wanted, review: Review) -> RecordsPage:
    """Return one page of an artifact's records.

    Raises:
        DataError: If it is no artifact of records, or a row is broken.
    """
    folder = open_set(root, name)
    origins: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    decisions: Counter[str] = Counter()
    counts = {"kept": 0, "dropped": 0}
    found: list[Entry] = []
    total, first = 0, (max(1, wanted.page) - 1) * PAGE
    for show, entry in _entries(folder, review):
        counts[show] += 1
        if entry.decision is not None:
            decisions[entry.decision.action] += 1
        if show != wanted.show:
            continue
        origins[entry.origin] += 1
        reasons[entry.reason] += 1
        if not _fits(entry, wanted):
            continue
        if first <= total < first + PAGE:
            found.append(entry)
        total += 1
    pages = max(1, -(-total // PAGE))
    return RecordsPage(
        tuple(found),
        total,
        pages,
        min(max(1, wanted.page), pages),
        counts["kept"],
        counts["dropped"],
        {key: count for key, count in origins.most_common() if key},
        {key: count for key, count in reasons.most_common() if key},
        decisions,
        _index_of(root, folder),
    )


def _entries(folder: Path, review: Review) -> Iterator[tuple[str, Entry]]:
    for record in read_records(folder / "output", on_drop=lambda _number, _reason: None):
        yield "kept", _of_record(record, review)
    if (folder / _DROPPED).is_file():
        rows = zip(read_rows(folder / _DROPPED), iter_objects(folder / _DROPPED), strict=True)
        for number, (row, raw) in enumerate(rows):
            yield "dropped", _of_row(row, raw, f"dropped-{number}", review)


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
    data = raw.get("record")
    record = Record.from_json(data) if isinstance(data, dict) and "messages" in data else None
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
