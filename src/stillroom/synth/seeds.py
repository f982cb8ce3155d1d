"""Seed readers: passages of an index, records of any format, and taxonomies.

Reads files and their rows; hidden characters are handled where prompts are built.

In a taxonomy a subject is a mapping of its parts by name, a list of leaves, or a description.
Within a mapping ``description``, ``examples`` (questions with answers) and ``topics`` are reserved;
any other key names a part. A folder in InstructLab's layout is read too: every ``qna.yaml`` is a
leaf, whose path is that of its folder.

Source: Li et al. 2024 (GLAN), arXiv:2402.13064, section 2.1; Sudalairaj et al. 2024 (LAB),
arXiv:2403.01081, section 3.1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stillroom.errors import DataError, RecipeError
from stillroom.objects import resolve_local
from stillroom.provenance import LEDGER, find_output, read_ledger
from stillroom.provenance.digests import load_json
from stillroom.recipes.yaml_text import YamlTree, format_path, read_yaml
from stillroom.records import Origin, Passage, Record, read_records
from stillroom.records.encodings import find_encoding_error
from stillroom.synth.types import (
    SeedItem,
    SeedKind,
    Split,
    Topic,
    get_seed_kind,
    has_unclear_split,
    read_split,
    to_passage,
)

__all__ = [
    "SeedSet",
    "count_bytes",
    "is_taxonomy",
    "read_seed_passages",
    "read_seeds",
    "read_taxonomy",
    "to_passage",
]

_PASSAGES_FILE = "passages.jsonl"
_RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True, slots=True)
class SeedSet:
    """The distinct items of one input, in the order of its file, and the number of rows skipped.

    ``splits`` are the sides that the file itself names, by id of the item; ``unclear`` counts the
    rows whose field ``split`` may name test rows, by its value.
    """

    path: Path
    items: tuple[SeedItem, ...]
    dropped: Mapping[str, int]
    splits: Mapping[str, Split] = field(default_factory=dict)
    unclear: Mapping[str, int] = field(default_factory=dict)

    @property
    def passages(self) -> tuple[Passage, ...]:
        """The items that are passages of documents."""
        return tuple(item for item in self.items if isinstance(item, Passage))


def count_bytes(references: Iterable[str]) -> int:
    """Return the size of files of records, and of the records and passages in folders."""
    files: list[Path] = []
    for path in map(resolve_local, references):
        names = (LEDGER, _PASSAGES_FILE, _RECORDS_FILE)
        files += (file for name in names for file in path.rglob(name)) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def read_seed_passages(reference: str) -> SeedSet:
    """Read the passages of a reference; each record becomes a passage.

    Args:
        reference: An index or records artifact, a folder with passages.jsonl, or a file.

    Raises:
        DataError: If there is no such file, a row of passages is invalid, or no passage is left.
    """
    return read_seeds(reference, ("passages",))


def read_seeds(reference: str, takes: Sequence[SeedKind]) -> SeedSet:
    """Read seed items as the first kind that the generator takes and the file can provide.

    A taxonomy provides topics; passages provide passages; records provide records, or passages if
    the generator takes no records.

    Args:
        reference: An index or records artifact, a folder with passages.jsonl, a taxonomy, a file.
        takes: Kinds of items that the generator takes.

    Raises:
        DataError: If there is no such file, a row is invalid, no item is left, or the generator
            takes no items of the kind.
    """
    path = resolve_local(reference)
    if is_taxonomy(path):
        topics = read_taxonomy(path)
        return _deduplicate(path, iter(topics), {}, takes)
    file = _find_file(path)
    dropped: dict[str, int] = {}
    splits: dict[str, Split] = {}
    unclear: Counter[str] = Counter()
    reasons: list[str] = []
    rows = _read_rows(file, dropped, reasons, takes, splits, unclear)
    seeds = _deduplicate(file, rows, dropped, takes, reasons)
    return replace(seeds, splits=splits, unclear=unclear)


def _deduplicate(
    path: Path,
    rows: Iterator[SeedItem],
    dropped: dict[str, int],
    takes: Sequence[SeedKind],
    reasons: Sequence[str] = (),
) -> SeedSet:
    unique: dict[str, SeedItem] = {}
    for item in rows:
        if get_seed_kind(item) not in takes:
            raise _wrong_kind_error(path, get_seed_kind(item), takes)
        if isinstance(item, Passage) and not item.text.strip():
            dropped["empty"] = dropped.get("empty", 0) + 1
        elif item.id in unique:
            dropped["repeated"] = dropped.get("repeated", 0) + 1
        else:
            unique[item.id] = item
    if not unique:
        raise DataError(
            f"{path} has no usable {'passage' if 'passages' in takes else 'seed'}"
            + "".join(f"; {reason}" for reason in reasons[:1]),
            code="synth.no-passages",
            expected="at least one passage with text, record or topic",
            next="build an index from documents: stillroom rag index FOLDER"
            if "passages" in takes
            else "name a file of records (such as JSON lines with question and answer)",
        )
    return SeedSet(path, tuple(unique.values()), dict(sorted(dropped.items())))


def _wrong_kind_error(path: Path, kind: SeedKind, takes: Sequence[SeedKind]) -> DataError:
    accepted = " or ".join(seed_kind for seed_kind in takes if seed_kind != "nothing")
    return DataError(
        f"{path} holds {kind}, which the generator does not take",
        code="synth.wrong-seeds",
        where=str(path),
        expected=accepted or "no seeds: the generator needs none",
        next=f"name a file of {accepted}"
        if accepted
        else ("remove index and seeds from the recipe"),
    )


def _read_rows(
    path: Path,
    dropped: dict[str, int],
    reasons: list[str],
    takes: Sequence[SeedKind],
    splits: dict[str, Split],
    unclear: Counter[str],
) -> Iterator[SeedItem]:
    if path.name == LEDGER:
        for number, row in enumerate(read_ledger(path.parent, "passages"), 1):
            yield _make_passage(row, path, number)
    elif _holds_passages(path):
        yield from _read_passages(path)
    else:
        are_records = "records" in takes or "passages" not in takes
        for record in _read_records(path, dropped, reasons):
            item = record if are_records else to_passage(record)
            if (side := read_split(record)) and splits.get(item.id) != "held_out":
                splits[item.id] = side
            if has_unclear_split(record):
                unclear[str(record.fields["split"])] += 1
            yield item


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
        row = load_json(line) if line else None
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
            raise find_encoding_error(path) from error


def _parse_passage(line: str, path: Path, number: int) -> Passage:
    try:
        data: dict[str, Any] = load_json(line)
    except ValueError as error:
        raise _broken_passage_error(path, number, f"{type(error).__name__}: {error}") from error
    return _make_passage(data, path, number)


def _make_passage(data: dict[str, Any], path: Path, number: int) -> Passage:
    try:
        passage = Passage.from_json(data)
        is_sound = isinstance(passage.text, str) and isinstance(passage.document_id, str)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken_passage_error(path, number, f"{type(error).__name__}: {error}") from error
    if not is_sound:
        raise _broken_passage_error(path, number, "text and document_id must be text")
    return passage


def _read_records(path: Path, dropped: dict[str, int], reasons: list[str]) -> Iterator[Record]:
    def count(row: int, reason: str) -> None:
        reasons.append(f"row {row}: {reason}")
        dropped["unreadable"] = dropped.get("unreadable", 0) + 1

    return read_records(path, on_drop=count)


def _broken_passage_error(path: Path, number: int, problem: str) -> DataError:
    return DataError(
        f"a passage cannot be read: {problem}",
        code="synth.broken-passage",
        where=f"{path}:{number}" if number else str(path),
        expected="one JSON object per line, as written by an index job",
        next="build the index again",
    )


_SUFFIXES = {".yaml", ".yml"}
_LEAF_FILE = "qna.yaml"
_EXAMPLES = ("examples", "seed_examples")
_DESCRIPTIONS = ("description", "task_description", "document_outline")
_NODE_KEYS = {*_EXAMPLES, *_DESCRIPTIONS, "topics"}
_HEADER_KEYS = {"version", "created_by", "license", "origin", "domain", "document"}
_FIELDS = ("question", "answer", "context")


def is_taxonomy(path: Path) -> bool:
    """Return whether a path is a YAML file, or a folder of ``qna.yaml`` files."""
    if path.is_file():
        return path.suffix.lower() in _SUFFIXES
    return path.is_dir() and next(path.rglob(_LEAF_FILE), None) is not None


def read_taxonomy(path: Path) -> list[Topic]:
    """Read the leaves of a taxonomy, in the order of the file.

    Raises:
        DataError: If the file is not a valid taxonomy; the error names the line.
    """
    if path.is_dir():
        files = sorted(path.rglob(_LEAF_FILE))
        return [
            topic
            for file in files
            for topic in _read_file(file, file.parent.relative_to(path).parts)
        ]
    return list(_read_file(path, ()))


def _read_file(file: Path, root: tuple[str, ...]) -> Iterator[Topic]:
    try:
        tree = read_yaml(file.read_text(encoding="utf-8-sig"), str(file))
    except (UnicodeDecodeError, RecipeError) as error:
        raise _broken_taxonomy_error(str(error).split("\n", 1)[0], str(file)) from error
    if tree.problems:
        raise _broken_taxonomy_error(tree.problems[0].what, tree.problems[0].where or str(file))
    if not isinstance(tree.data, Mapping):
        raise _broken_taxonomy_error("it is not a mapping of subjects", str(file))
    head = {
        key: tree.data[key] for key in _HEADER_KEYS if isinstance(tree.data.get(key), str | int)
    }
    kind = str(head.get("origin", "unknown"))
    origin = Origin.from_json({"kind": kind, "license": str(head.get("license", ""))})
    body = {key: value for key, value in tree.data.items() if key not in head}
    yield from _Reader(tree, origin).topics(body, root, ())


class _Reader:
    def __init__(self, tree: YamlTree, origin: Origin) -> None:
        self._tree, self._origin = tree, origin

    def topics(
        self, value: Any, names: tuple[str, ...], path: tuple[str | int, ...]
    ) -> Iterator[Topic]:
        """Yield the leaves below a value; ``path`` is its path in the file."""
        if value is None or isinstance(value, str | int | float):
            yield self._leaf(names, path, "" if value is None else str(value), ())
        elif isinstance(value, Mapping):
            yield from self._mapping(value, names, path)
        else:
            yield from self._list(value, names, path)

    def _list(
        self, values: list[Any], names: tuple[str, ...], path: tuple[str | int, ...]
    ) -> Iterator[Topic]:
        for number, part in enumerate(values):
            item_path = (*path, number)
            if isinstance(part, str | int | float) and str(part).strip():
                yield self._leaf((*names, str(part)), item_path, "", ())
            elif isinstance(part, Mapping) and not _NODE_KEYS.intersection(part):
                yield from self._mapping(part, names, item_path)
            else:
                raise self._wrong("a subject of a list has no name", item_path)

    def _mapping(
        self, value: Mapping[str, Any], names: tuple[str, ...], path: tuple[str | int, ...]
    ) -> Iterator[Topic]:
        parts = {key: part for key, part in value.items() if key not in _NODE_KEYS}
        inner = value.get("topics")
        descriptions = [str(value[key]).strip() for key in _DESCRIPTIONS if value.get(key)]
        if parts:
            for key, part in parts.items():
                yield from self.topics(part, (*names, str(key)), (*path, key))
        if inner:
            if isinstance(inner, str):
                raise self._wrong("topics must be a list or a mapping", (*path, "topics"))
            yield from self.topics(inner, names, (*path, "topics"))
        elif not parts:
            yield self._leaf(
                names, path, " ".join(descriptions), tuple(self._examples(value, path))
            )

    def _examples(
        self, value: Mapping[str, Any], path: tuple[str | int, ...]
    ) -> Iterator[Mapping[str, str]]:
        for key in _EXAMPLES:
            rows = value.get(key) or []
            if not isinstance(rows, list):
                raise self._wrong(f"{key} is not a list", (*path, key))
            for number, row in enumerate(rows):
                item_path = (*path, key, number)
                if isinstance(row, Mapping) and "questions_and_answers" in row:
                    pairs = row["questions_and_answers"] or []
                    if not isinstance(pairs, list) or not all(
                        isinstance(p, Mapping) for p in pairs
                    ):
                        raise self._wrong("questions_and_answers is not a list of pairs", item_path)
                    for pair in pairs:
                        yield self._example({"context": row.get("context"), **pair}, item_path)
                elif isinstance(row, Mapping):
                    yield self._example(row, item_path)
                else:
                    yield self._example({"question": row}, item_path)

    def _example(self, row: Mapping[str, Any], path: tuple[str | int, ...]) -> Mapping[str, str]:
        example = {
            name: str(row[name]).strip()
            for name in _FIELDS
            if row.get(name) is not None and str(row[name]).strip()
        }
        if "question" not in example:
            raise self._wrong("an example has no question", path)
        return example

    def _leaf(
        self,
        names: tuple[str, ...],
        path: tuple[str | int, ...],
        description: str,
        examples: tuple[Mapping[str, str], ...],
    ) -> Topic:
        if not names:
            raise self._wrong("a subject has no name", path)
        return Topic(names, description, examples, self._tree.place_of_value(path), self._origin)

    def _wrong(self, problem: str, path: tuple[str | int, ...]) -> DataError:
        return _broken_taxonomy_error(
            f"{format_path(path)}: {problem}", self._tree.place_of_value(path)
        )


def _broken_taxonomy_error(problem: str, where: str) -> DataError:
    return DataError(
        f"the taxonomy cannot be read: {problem}",
        code="synth.taxonomy",
        where=where,
        expected="subjects by name, each a mapping of parts, a list of leaves or a description; "
        "a leaf may have description and examples (question, answer)",
        next="see docs/how-to/choose-a-generator.md for an example",
    )
