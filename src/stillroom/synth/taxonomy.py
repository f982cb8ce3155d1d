"""Taxonomies: a tree of subjects in YAML, whose leaves are topics to write about.

A subject is a mapping of its parts by name, a list of leaves, or a description. Within a mapping
``description``, ``examples`` (questions with answers) and ``topics`` are its own; any other key
names a part. A folder is read too, as InstructLab keeps it: every ``qna.yaml`` is a leaf, whose
path is that of its folder. Knows files, no model.

Source: Li et al. 2024 (GLAN), arXiv:2402.13064, section 2.1; Sudalairaj et al. 2024 (LAB),
arXiv:2403.01081, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stillroom.errors import DataError, RecipeError
from stillroom.recipes.reading import Tree, dotted, read_yaml
from stillroom.records import Origin
from stillroom.synth.items import Topic

__all__ = ["is_taxonomy", "read_taxonomy"]

_SUFFIXES = {".yaml", ".yml"}
_LEAF_FILE = "qna.yaml"
_EXAMPLES = ("examples", "seed_examples")
_DESCRIPTIONS = ("description", "task_description", "document_outline")
_OWN = {*_EXAMPLES, *_DESCRIPTIONS, "topics"}
_HEAD = {"version", "created_by", "license", "origin", "domain", "document"}
_FIELDS = ("question", "answer", "context")


def is_taxonomy(path: Path) -> bool:
    """Return whether a path is a YAML file, or a folder of ``qna.yaml`` files."""
    if path.is_file():
        return path.suffix.lower() in _SUFFIXES
    return path.is_dir() and next(path.rglob(_LEAF_FILE), None) is not None


def read_taxonomy(path: Path) -> list[Topic]:
    """Read the leaves of a taxonomy, in the order of the file.

    Raises:
        DataError: If the file is no such tree; says the line.
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
        raise _broken(str(error).split("\n", 1)[0], str(file)) from error
    if tree.problems:
        raise _broken(tree.problems[0].what, tree.problems[0].where or str(file))
    if not isinstance(tree.data, Mapping):
        raise _broken("it is no mapping of subjects", str(file))
    head = {key: tree.data[key] for key in _HEAD if isinstance(tree.data.get(key), str | int)}
    kind = str(head.get("origin", "unknown"))
    origin = Origin.from_json({"kind": kind, "license": str(head.get("license", ""))})
    body = {key: value for key, value in tree.data.items() if key not in head}
    yield from _Reader(tree, origin).topics(body, root, ())


class _Reader:
    def __init__(self, tree: Tree, origin: Origin) -> None:
        self._tree, self._origin = tree, origin

    def topics(
        self, value: Any, names: tuple[str, ...], at: tuple[str | int, ...]
    ) -> Iterator[Topic]:
        """Yield the leaves below a value; ``at`` is its path in the file."""
        if value is None or isinstance(value, str | int | float):
            yield self._leaf(names, at, "" if value is None else str(value), ())
        elif isinstance(value, Mapping):
            yield from self._mapping(value, names, at)
        else:
            yield from self._list(value, names, at)

    def _list(
        self, values: list[Any], names: tuple[str, ...], at: tuple[str | int, ...]
    ) -> Iterator[Topic]:
        for number, part in enumerate(values):
            place = (*at, number)
            if isinstance(part, str | int | float) and str(part).strip():
                yield self._leaf((*names, str(part)), place, "", ())
            elif isinstance(part, Mapping) and not _OWN.intersection(part):
                yield from self._mapping(part, names, place)
            else:
                raise self._wrong("a subject of a list has no name", place)

    def _mapping(
        self, value: Mapping[str, Any], names: tuple[str, ...], at: tuple[str | int, ...]
    ) -> Iterator[Topic]:
        parts = {key: part for key, part in value.items() if key not in _OWN}
        inner = value.get("topics")
        told = [str(value[key]).strip() for key in _DESCRIPTIONS if value.get(key)]
        if parts:
            for key, part in parts.items():
                yield from self.topics(part, (*names, str(key)), (*at, key))
        if inner:
            if isinstance(inner, str):
                raise self._wrong("topics is a list or a mapping", (*at, "topics"))
            yield from self.topics(inner, names, (*at, "topics"))
        elif not parts:
            yield self._leaf(names, at, " ".join(told), tuple(self._examples(value, at)))

    def _examples(
        self, value: Mapping[str, Any], at: tuple[str | int, ...]
    ) -> Iterator[Mapping[str, str]]:
        for key in _EXAMPLES:
            rows = value.get(key) or []
            if not isinstance(rows, list):
                raise self._wrong(f"{key} is no list", (*at, key))
            for number, row in enumerate(rows):
                place = (*at, key, number)
                if isinstance(row, Mapping) and "questions_and_answers" in row:
                    shared = {"context": row.get("context")}
                    for pair in row["questions_and_answers"] or ():
                        yield self._example({**shared, **pair}, place)
                elif isinstance(row, Mapping):
                    yield self._example(row, place)
                else:
                    yield self._example({"question": row}, place)

    def _example(self, row: Mapping[str, Any], at: tuple[str | int, ...]) -> Mapping[str, str]:
        found = {
            name: str(row[name]).strip()
            for name in _FIELDS
            if row.get(name) is not None and str(row[name]).strip()
        }
        if "question" not in found:
            raise self._wrong("an example has no question", at)
        return found

    def _leaf(
        self,
        names: tuple[str, ...],
        at: tuple[str | int, ...],
        description: str,
        examples: tuple[Mapping[str, str], ...],
    ) -> Topic:
        if not names:
            raise self._wrong("a subject has no name", at)
        return Topic(names, description, examples, self._tree.place_of_value(at), self._origin)

    def _wrong(self, what: str, at: tuple[str | int, ...]) -> DataError:
        return _broken(f"{dotted(at)}: {what}", self._tree.place_of_value(at))


def _broken(what: str, where: str) -> DataError:
    return DataError(
        f"the taxonomy cannot be read: {what}",
        code="synth.taxonomy",
        where=where,
        expected="subjects by name, each a mapping of parts, a list of leaves or a description; "
        "a leaf may have description and examples (question, answer)",
        next="see docs/how-to/choose-a-generator.md for one",
    )
