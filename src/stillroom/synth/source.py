"""Passages to write about: from an index, a passages file, or records of any format.

Knows files and their rows. Hidden characters and empty texts are handled where prompts are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.provenance import LEDGER, find_output, read_ledger
from stillroom.records import Location, Passage, Record, content_id, read_records

__all__ = ["Source", "passage_of_record", "read_source"]

_PASSAGES_FILE = "passages.jsonl"
_RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True, slots=True)
class Source:
    """The distinct passages of one input, in the order of its file, and how many rows fell out."""

    path: Path
    passages: tuple[Passage, ...]
    dropped: Mapping[str, int]


def read_source(reference: str) -> Source:
    """Read the passages that a recipe names.

    Args:
        reference: An index or records artifact, a folder with passages.jsonl, or a file.

    Raises:
        DataError: If there is no such file, a row of passages is broken, or nothing is left.
    """
    path = _find_file(Path(reference))
    dropped: dict[str, int] = {}
    unique: dict[str, Passage] = {}
    rows = _read_rows(path, dropped)
    for passage in rows:
        if not passage.text.strip():
            dropped["empty"] = dropped.get("empty", 0) + 1
        elif passage.id in unique:
            dropped["repeated"] = dropped.get("repeated", 0) + 1
        else:
            unique[passage.id] = passage
    if not unique:
        raise DataError(
            f"{path} holds no passage to ask about",
            code="synth.no-passages",
            where=str(path),
            expected="at least one passage with text",
            next="build an index from documents: stillroom rag index FOLDER",
        )
    return Source(path, tuple(unique.values()), dict(sorted(dropped.items())))


def passage_of_record(record: Record) -> Passage:
    """Return a record's text as a passage; its ``document_id`` field, or its id, is the document.

    What user and assistant say is taken, in order; system and tool messages are not.
    """
    texts = [
        message.content for message in record.messages if message.role in {"user", "assistant"}
    ]
    text = "\n\n".join(texts)
    name = record.fields.get("document_id")
    document = name if isinstance(name, str) and name else content_id("doc", record.id)
    place = Location("", "", 0, 0)
    return Passage(document, 0, len(text), text, place, origin=record.origin)


def _read_rows(path: Path, dropped: dict[str, int]) -> Iterator[Passage]:
    if path.name == LEDGER:
        for number, row in enumerate(read_ledger(path.parent, "passages"), 1):
            yield _make_passage(row, path, number)
    elif _holds_passages(path):
        yield from _read_passages(path)
    else:
        yield from _read_records(path, dropped)


def _find_file(path: Path) -> Path:
    folder = find_output(path, "index", "records")
    if folder.is_file():
        return folder
    for name in (LEDGER, _PASSAGES_FILE, _RECORDS_FILE):
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{path} holds neither {LEDGER}, {_PASSAGES_FILE} nor {_RECORDS_FILE}",
        code="synth.no-passages",
        where=str(path),
        expected="an index artifact, or a file of passages or records",
        next="build an index first: stillroom rag index FOLDER",
    )


def _holds_passages(path: Path) -> bool:
    if path.suffix != ".jsonl":
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        line = next((line for line in file if line.strip()), "")
    try:
        row = json.loads(line) if line else None
    except ValueError:
        return path.name == _PASSAGES_FILE
    return isinstance(row, dict) and {"document_id", "start", "end", "text"} <= row.keys()


def _read_passages(path: Path) -> Iterator[Passage]:
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse_passage(line, path, number)
        except UnicodeDecodeError as error:
            raise _broken(path, 0, f"it is not UTF-8: {error}") from error


def _parse_passage(line: str, path: Path, number: int) -> Passage:
    try:
        data: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise _broken(path, number, f"{type(error).__name__}: {error}") from error
    return _make_passage(data, path, number)


def _make_passage(data: dict[str, Any], path: Path, number: int) -> Passage:
    try:
        passage = Passage.from_json(data)
        is_sound = isinstance(passage.text, str) and isinstance(passage.document_id, str)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, number, f"{type(error).__name__}: {error}") from error
    if not is_sound:
        raise _broken(path, number, "text and document_id must be text")
    return passage


def _read_records(path: Path, dropped: dict[str, int]) -> Iterator[Passage]:
    def count(row: int, reason: str) -> None:
        dropped["unreadable"] = dropped.get("unreadable", 0) + 1

    for record in read_records(path, on_drop=count):
        yield passage_of_record(record)


def _broken(path: Path, number: int, why: str) -> DataError:
    return DataError(
        f"a passage cannot be read: {why}",
        code="synth.broken-passage",
        where=f"{path}:{number}" if number else str(path),
        expected="one JSON object a line, as an index writes them",
        next="build the index again",
    )
