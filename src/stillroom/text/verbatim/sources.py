"""Texts that a run was made from: documents of its indexes, and records that a model learned from.

Each set of texts is named by the digest of its artifact, so that a suffix array over them is kept
until one of them changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import DataError
from stillroom.provenance import Artifact, digest_file, digest_json, read_artifact, resolve_parent
from stillroom.provenance.sources import (
    find_records,
    has_passages,
    is_path_parent,
    iter_documents,
    list_ancestors,
)
from stillroom.records import Record, find_record_file, read_records
from stillroom.text.verbatim.suffix_index import IndexedText

__all__ = ["DOCUMENTS", "RECORDS", "RunTexts", "find_record", "find_texts", "iter_texts"]

DOCUMENTS, RECORDS = 0, 1
"""Groups of indexed texts."""
_FORMAT = 1
_LEARNED_ROLES = ("records", "questions")


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
        try:
            learned = {path: digest_file(find_record_file(path)) for path in within}
        except DataError as error:
            raise DataError(
                f"{within[0]} has no documents and no records to search",
                code="data.no-texts",
                where=str(within[0]),
                expected="a run, an index, a checkpoint of a job, or a set of records",
                next=f"stillroom show {within[0]} --lineage",
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


def iter_texts(texts: RunTexts) -> Iterator[IndexedText]:
    """Yield each document, then each turn of each record.

    Raises:
        DataError: If an index has tenants, or a file is damaged.
    """
    for number, (folder, _) in enumerate(texts.indexes):
        for row in iter_documents(folder):
            facts = {"index": number, "document": row["id"]}
            yield IndexedText(row["text"], f"{number}:{row['id']}", DOCUMENTS, facts)
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
        yield IndexedText(message.content, record.id, RECORDS, facts)


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
