"""Checking an index against itself: what the ledger says, and what lies on the disk.

Every passage's text is cut from its document again, every digest recomputed. What is derived can be
made again from the ledger; damage to the ledger itself is only named.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import IntegrityError, StillroomError
from stillroom.provenance import ARTIFACT_FILE, read_artifact
from stillroom.provenance.ledger import connect_ledger
from stillroom.rag.store.description import INDEX
from stillroom.rag.store.digests import bucket_of, digest_bucket, digest_snapshot, mark_document
from stillroom.rag.store.fields import derive_fields, list_values
from stillroom.rag.store.ledger import Ledger
from stillroom.rag.store.locking import SNAPSHOTS, snapshot_file
from stillroom.rag.store.parts import Facts, mark_of
from stillroom.rag.store.schema import FOREVER, PASSAGE_BITS
from stillroom.rag.store.segments import list_segment_folders, open_segment, segment_folder
from stillroom.rag.store.snapshots import Snapshot

__all__ = ["Damage", "check_folder", "check_manifest"]


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it should be; ``segment`` is the number of the one concerned."""

    path: str
    what: str
    is_derived: bool
    segment: int = 0

    def __str__(self) -> str:
        """Return one line for a person."""
        return f"{self.path}: {self.what}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"path": self.path, "what": self.what, "is_derived": self.is_derived}


def check_folder(folder: Path) -> list[Damage]:
    """Return everything in an index's folder that does not agree; none means sound.

    Args:
        folder: Of the artifact's own files.

    Raises:
        IntegrityError: If it is unfinished, or its ledger cannot be read at all.
    """
    ledger = Ledger(folder)
    try:
        found = [*_check_pages(ledger)]
        if found:  # nothing that such a ledger says can be relied on
            return found
        found += [*_check_contents(ledger), *_check_documents(ledger)]
        found += [*_check_facts(ledger), *_check_digest(ledger)]
        found += [*_check_segments(folder, ledger), *_check_orphans(folder, ledger)]
        return [*found, *check_manifest(folder, ledger.find_snapshot())]
    finally:
        ledger.close()


def _ledger_damage(ledger: Ledger, what: str) -> Damage:
    return Damage(ledger.path.name, what, is_derived=False)


def _check_pages(ledger: Ledger) -> Iterator[Damage]:
    """Let SQLite look at its pages and indexes."""
    try:
        with closing(connect_ledger(ledger.path)) as connection:
            rows = connection.execute("PRAGMA integrity_check(5)").fetchall()
    except sqlite3.Error as error:
        rows = [(str(error),)]
    for (said,) in rows:
        if said != "ok":
            yield _ledger_damage(ledger, str(said))


def _check_contents(ledger: Ledger) -> Iterator[Damage]:
    """Recompute what each document became: spans, ids, digests."""
    keys = ledger.query("SELECT key, path, mark, passages, fields FROM contents ORDER BY key")
    for key, path, mark, count, fields in keys:
        rows = ledger.query(
            "SELECT id, body FROM passages WHERE key >= ? AND key < ? ORDER BY key",
            (key << PASSAGE_BITS, (key + 1) << PASSAGE_BITS),
        )
        try:
            line = ledger.document(key)
            document = json.loads(line)
            text = document["text"]
            is_told = derive_fields(document) == json.loads(fields)
            passages = [json.loads(body) for _, body in rows]
            is_cut = all(text[one["start"] : one["end"]] == one["text"] for one in passages)
        except (StillroomError, zlib.error, ValueError, KeyError, TypeError) as error:
            yield _ledger_damage(ledger, f"{path}: cannot be read: {error}".split("\n", 1)[0])
            continue
        if not is_told:
            yield _ledger_damage(ledger, f"{path}: has other fields than its document gives")
        if not is_cut:
            yield _ledger_damage(ledger, f"{path}: a passage is not the document's own text")
        if len(rows) != count or [one["id"] for one in passages] != [name for name, _ in rows]:
            yield _ledger_damage(ledger, f"{path}: has other passages than it says")
        if mark_of(line, [bytes(body) for _, body in rows]) != mark:
            yield _ledger_damage(ledger, f"{path}: is not what was written")


def _check_documents(ledger: Ledger) -> Iterator[Damage]:
    """Hold versions of documents against what they point to."""
    rows = ledger.query(
        "SELECT d.path, d.bucket, d.mark, d.tenant, d.labels, d.fields, c.path, c.mark, "
        "(SELECT count(*) FROM placements p WHERE p.document = d.key AND p.died >= d.died) "
        "FROM documents d LEFT JOIN contents c ON c.key = d.content ORDER BY d.key"
    )
    for path, bucket, mark, tenant, labels, fields, named, content, placed in rows:
        if content is None or named != path:
            yield _ledger_damage(ledger, f"{path}: has no content of its own")
            continue
        facts = Facts(json.loads(fields), tenant, tuple(json.loads(labels)))
        if mark_document(path, content, facts) != mark or bucket_of(path) != bucket:
            yield _ledger_damage(ledger, f"{path}: its fields, tenant or labels were changed")
        if placed != 1:
            yield _ledger_damage(ledger, f"{path}: lies in {placed} places")


def _check_facts(ledger: Ledger) -> Iterator[Damage]:
    """Hold what filters and access read against what each document's mark covers."""
    rows = ledger.query(
        "SELECT d.key, d.path, d.labels, d.fields, c.fields FROM documents d "
        "JOIN contents c ON c.key = d.content ORDER BY d.key"
    )
    labels: dict[int, set[str]] = {}
    for key, label in ledger.query("SELECT document, label FROM labels"):
        labels.setdefault(key, set()).add(label)
    values: dict[int, list[Any]] = {}
    for key, *value in ledger.query("SELECT document, name, kind, value FROM fields"):
        values.setdefault(key, []).append(tuple(value))
    for key, path, own, fields, derived in rows:
        merged = {**json.loads(derived), **json.loads(fields)}
        is_same = Counter(values.pop(key, [])) == Counter(list_values(merged))
        if labels.pop(key, set()) != set(json.loads(own)) or not is_same:
            yield _ledger_damage(ledger, f"{path}: its rows of labels or fields were changed")
    if labels or values:
        yield _ledger_damage(ledger, "there are labels or fields of no document")


def _check_digest(ledger: Ledger) -> Iterator[Damage]:
    """Recompute digest and counts of the newest snapshot."""
    latest = ledger.find_snapshot()
    marks: dict[int, list[str]] = {}
    passages = 0
    rows = ledger.query(
        "SELECT bucket, mark, passages FROM documents WHERE died = ? ORDER BY path", (FOREVER,)
    )
    for bucket, mark, count in rows:
        marks.setdefault(bucket, []).append(mark)
        passages += count
    buckets = {number: digest_bucket(own) for number, own in marks.items()}
    if digest_snapshot(ledger.description, buckets) != latest.digest:
        yield _ledger_damage(ledger, f"snapshot {latest.number} has another digest")
    if (latest.documents, latest.passages) != (len(rows), passages):
        yield _ledger_damage(
            ledger,
            f"snapshot {latest.number} counts {latest.documents} documents and "
            f"{latest.passages} passages, there are {len(rows)} and {passages}",
        )


def _check_segments(folder: Path, ledger: Ledger) -> Iterator[Damage]:
    """Open every segment that a snapshot names, with digests."""
    seen: set[int] = set()
    for snapshot in ledger.snapshots():
        for entry in ledger.segments(snapshot.number):
            if entry.number in seen:
                continue
            seen.add(entry.number)
            try:
                open_segment(folder, entry, verify=True)
            except IntegrityError as error:
                what = error.problems[0].what.removeprefix("the index is damaged: ")
                place = segment_folder(folder, entry.number).relative_to(folder).as_posix()
                yield Damage(place, what, is_derived=True, segment=entry.number)
    rows = ledger.query(
        "SELECT p.segment, max(p.start + d.passages), s.rows FROM placements p "
        "JOIN documents d ON d.key = p.document LEFT JOIN segments s ON s.number = p.segment "
        "WHERE p.died > (SELECT min(number) FROM snapshots) GROUP BY p.segment"
    )
    for number, end, size in rows:
        if size is None or end > size:
            yield _ledger_damage(ledger, f"documents lie beyond segment {number}")


def _check_orphans(folder: Path, ledger: Ledger) -> Iterator[Damage]:
    """Name files that no snapshot needs, and snapshots without their file."""
    named = {segment_folder(folder, n) for (n,) in ledger.query("SELECT number FROM segments")}
    for path in list_segment_folders(folder):
        if path not in named:
            yield Damage(path.relative_to(folder).as_posix(), "no snapshot names it", True)
    files = {snapshot_file(folder, one.number) for one in ledger.snapshots()}
    place = folder / SNAPSHOTS
    there = set(place.iterdir()) if place.is_dir() else set()
    for path in sorted(files - there):
        yield Damage(path.relative_to(folder).as_posix(), "it is missing", True)
    for path in sorted(there - files):
        yield Damage(path.relative_to(folder).as_posix(), "no snapshot is so numbered", True)
    if ledger.query("SELECT 1 FROM settings WHERE name = 'staged'"):
        yield Damage(ledger.path.name, "a writer was killed and left passages unseen", True)


def check_manifest(folder: Path, latest: Snapshot) -> Iterator[Damage]:
    """Yield where index.json and artifact.json do not agree with the newest snapshot."""
    try:
        told = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if told["digest"] != latest.digest:
            yield Damage(INDEX, "speaks of another snapshot than the newest", True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Damage(INDEX, f"cannot be read: {error}", True)
    if (folder.parent / ARTIFACT_FILE).is_file():
        found = read_artifact(folder.parent).details.get("snapshot")
        if found != latest.number:
            yield Damage(ARTIFACT_FILE, f"speaks of snapshot {found}, not {latest.number}", True)
