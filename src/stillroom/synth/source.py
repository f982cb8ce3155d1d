"""What to write about: passages of an index or a file, records of any format, or a taxonomy.

Knows files and their rows. Hidden characters and empty texts are handled where prompts are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.objects import local
from stillroom.provenance import LEDGER, find_output, read_ledger
from stillroom.records import Passage, Record, read_records
from stillroom.synth.items import Item, SeedKind, kind_of, passage_of_record
from stillroom.synth.taxonomy import is_taxonomy, read_taxonomy

__all__ = ["Source", "passage_of_record", "read_items", "read_source"]

_PASSAGES_FILE = "passages.jsonl"
_RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True, slots=True)
class Source:
    """The distinct items of one input, in the order of its file, and how many rows fell out."""

    path: Path
    items: tuple[Item, ...]
    dropped: Mapping[str, int]

    @property
    def passages(self) -> tuple[Passage, ...]:
        """The items that are passages of documents."""
        return tuple(item for item in self.items if isinstance(item, Passage))


def read_source(reference: str) -> Source:
    """Read the passages that a recipe names; records are read as passages of their own.

    Args:
        reference: An index or records artifact, a folder with passages.jsonl, or a file.

    Raises:
        DataError: If there is no such file, a row of passages is broken, or nothing is left.
    """
    return read_items(reference, ("passages",))


def read_items(reference: str, takes: Sequence[SeedKind]) -> Source:
    """Read what a generator is to start from, as the first kind it takes that the file can be.

    A taxonomy gives topics; passages give passages; records give records, or passages where the
    generator takes no records.

    Args:
        reference: An index or records artifact, a folder with passages.jsonl, a taxonomy, a file.
        takes: The kinds of items that the generator takes.

    Raises:
        DataError: If there is no such file, a row is broken, nothing is left, or the generator
            takes nothing of the kind.
    """
    path = local(reference)
    if is_taxonomy(path):
        topics = read_taxonomy(path)
        return _distinct(path, iter(topics), {}, takes)
    file = _find_file(path)
    dropped: dict[str, int] = {}
    return _distinct(file, _read_rows(file, dropped, takes), dropped, takes)


def _distinct(
    path: Path, rows: Iterator[Item], dropped: dict[str, int], takes: Sequence[SeedKind]
) -> Source:
    unique: dict[str, Item] = {}
    for item in rows:
        if kind_of(item) not in takes:
            raise _unfit(path, kind_of(item), takes)
        if isinstance(item, Passage) and not item.text.strip():
            dropped["empty"] = dropped.get("empty", 0) + 1
        elif item.id in unique:
            dropped["repeated"] = dropped.get("repeated", 0) + 1
        else:
            unique[item.id] = item
    if not unique:
        raise DataError(
            f"{path} holds no {'passage' if 'passages' in takes else 'seed'} to ask about",
            code="synth.no-passages",
            expected="at least one passage with text, record or topic",
            next="build an index from documents: stillroom rag index FOLDER"
            if "passages" in takes
            else "name a file with records (JSON lines with question and answer, say)",
        )
    return Source(path, tuple(unique.values()), dict(sorted(dropped.items())))


def _unfit(path: Path, kind: SeedKind, takes: Sequence[SeedKind]) -> DataError:
    wanted = " or ".join(one for one in takes if one != "nothing")
    return DataError(
        f"{path} holds {kind}, which the generator does not start from",
        code="synth.wrong-seeds",
        where=str(path),
        expected=wanted or "no seeds at all: the generator needs none",
        next=f"name a file of {wanted}" if wanted else "leave index and seeds out of the recipe",
    )


def _read_rows(path: Path, dropped: dict[str, int], takes: Sequence[SeedKind]) -> Iterator[Item]:
    if path.name == LEDGER:
        for number, row in enumerate(read_ledger(path.parent, "passages"), 1):
            yield _make_passage(row, path, number)
    elif _holds_passages(path):
        yield from _read_passages(path)
    elif "records" in takes or "passages" not in takes:
        yield from _read_records(path, dropped)
    else:
        yield from map(passage_of_record, _read_records(path, dropped))


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


def _read_records(path: Path, dropped: dict[str, int]) -> Iterator[Record]:
    def count(row: int, reason: str) -> None:
        dropped["unreadable"] = dropped.get("unreadable", 0) + 1

    return read_records(path, on_drop=count)


def _broken(path: Path, number: int, why: str) -> DataError:
    return DataError(
        f"a passage cannot be read: {why}",
        code="synth.broken-passage",
        where=f"{path}:{number}" if number else str(path),
        expected="one JSON object a line, as an index writes them",
        next="build the index again",
    )
