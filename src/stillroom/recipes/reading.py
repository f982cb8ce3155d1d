"""YAML 1.2 text to plain values, each with the place where it stands.

A strict subset: one UTF-8 document of mappings with plain keys, sequences and scalars of the core
schema. Tags, anchors and aliases are refused, as are duplicate keys and documents that are too
large or too deep. Knows nothing of recipes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stillroom.errors import Problem, RecipeError

__all__ = ["Tree", "dotted", "read_yaml", "resolve_scalar"]

MAX_TEXT_BYTES = 256 * 1024
MAX_DEPTH = 32

Path = tuple[str | int, ...]

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = frozenset({".nan", ".NaN", ".NAN"})
_MAX_DIGITS = 400


@dataclass
class Tree:
    """Plain values, and for every path the places of its key and its value."""

    data: Any = None
    keys: dict[Path, str] = field(default_factory=dict)
    values: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place_of_key(self, path: Path) -> str:
        """Return where the key stands, or the nearest that encloses it."""
        return self._nearest(path, self.keys)

    def place_of_value(self, path: Path) -> str:
        """Return where the value stands, or the nearest that encloses it."""
        return self._nearest(path, self.values)

    def holds(self, path: Path) -> bool:
        """Return whether the text has something at the path."""
        return path in self.values

    def _nearest(self, path: Path, places: Mapping[Path, str]) -> str:
        for length in range(len(path), -1, -1):
            if path[:length] in places:
                return places[path[:length]]
            if path[:length] in self.values:
                return self.values[path[:length]]
        return ""


def read_yaml(text: str, where: str) -> Tree:
    """Read one YAML document.

    Args:
        text: The document.
        where: What its places begin with, as a file name.

    Returns:
        The values with their places; ``problems`` holds what is wrong but can be read past
        (duplicate keys, tags, anchors).

    Raises:
        RecipeError: If the text is no YAML, too large, or too deep.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise RecipeError(
            "the recipe is too large",
            code="recipe.too-large",
            where=where,
            expected=f"at most {MAX_TEXT_BYTES // 1024} KiB",
            next="keep data in files of its own and name them in the recipe",
        )
    return _Builder(where).build(text)


def resolve_scalar(text: str) -> Any:
    """Return what a plain scalar means in the core schema of YAML 1.2."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if len(text) <= _MAX_DIGITS:
        if _INT.fullmatch(text):
            return int(text)
        if _OCTAL.fullmatch(text):
            return int(text[2:], 8)
        if _HEX.fullmatch(text):
            return int(text, 16)
        if _FLOAT.fullmatch(text):
            return float(text)
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", "").lower())
    return float("nan") if text in _NAN else text


class _Builder:
    """Turns the parser's events into a Tree; recursion is bounded by MAX_DEPTH."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.tree = Tree()
        self.events: Iterator[Any] = iter(())

    def build(self, text: str) -> Tree:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError

        if any("\ud800" <= letter <= "\udfff" for letter in text):
            self.fail("the recipe is not UTF-8", code="recipe.encoding", expected="UTF-8 text")
        try:
            self.events = iter(YAML(typ="rt", pure=True).parse(text))
            self.document()
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.fail(f"the recipe is not YAML: {error.problem or error.context}", mark=mark)
        except YAMLError as error:
            first = str(error).split("\n", 1)[0]
            self.fail(f"the recipe is not YAML: {first}")
        return self.tree

    def document(self) -> None:
        documents = 0
        for event in self.events:
            match type(event).__name__:
                case "DocumentStartEvent":
                    documents += 1
                    if documents > 1:
                        self.fail(
                            "the file holds a second document",
                            mark=event.start_mark,
                            expected="one recipe a file",
                        )
                    if event.tags:
                        self.refuse("a %TAG directive", event)
                case "StreamStartEvent" | "DocumentEndEvent" | "StreamEndEvent":
                    continue
                case _:
                    self.tree.data = self.node(event, (), 0)

    def node(self, event: Any, path: Path, depth: int) -> Any:
        place = self.place(event.start_mark)
        self.tree.values[path] = place
        name = type(event).__name__
        if name == "AliasEvent":
            self.refuse(f"the alias *{event.anchor}", event)
            return None
        if event.anchor is not None:
            self.refuse(f"the anchor &{event.anchor}", event)
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.refuse(f"the tag {tag}", event)
        if depth > MAX_DEPTH:
            self.fail(
                "the recipe is nested too deeply",
                code="recipe.too-large",
                mark=event.start_mark,
                expected=f"at most {MAX_DEPTH} levels",
            )
        if name == "MappingStartEvent":
            return self.mapping(path, depth)
        if name == "SequenceStartEvent":
            return self.sequence(path, depth)
        return resolve_scalar(event.value) if event.implicit[0] else event.value

    def mapping(self, path: Path, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while type(event := next(self.events)).__name__ != "MappingEndEvent":
            place = self.place(event.start_mark)
            if type(event).__name__ != "ScalarEvent":
                self.fail(
                    "a key is not a word",
                    mark=event.start_mark,
                    expected="keys of plain text",
                )
            key = event.value
            if event.anchor is not None or event.tag is not None:
                self.refuse(f"the anchor or tag of the key '{key}'", event)
            here = (*path, key)
            if key in found:
                self.tree.problems.append(
                    Problem(
                        f"{dotted(here)} is set twice",
                        "recipe.duplicate-key",
                        place,
                        f"it once, as at {self.tree.keys[here]}",
                        "remove one of the two",
                    )
                )
                self.node(next(self.events), ("", *here), depth + 1)
                continue
            self.tree.keys[here] = place
            found[key] = self.node(next(self.events), here, depth + 1)
        return found

    def sequence(self, path: Path, depth: int) -> list[Any]:
        found: list[Any] = []
        while type(event := next(self.events)).__name__ != "SequenceEndEvent":
            found.append(self.node(event, (*path, len(found)), depth + 1))
        return found

    def place(self, mark: Any) -> str:
        return f"{self.where}:{mark.line + 1}:{mark.column + 1}" if mark else self.where

    def refuse(self, what: str, event: Any) -> None:
        self.tree.problems.append(
            Problem(
                f"{what} is not part of a recipe",
                "recipe.yaml-feature",
                self.place(event.start_mark),
                "plain YAML without tags, anchors and aliases",
                "write the value itself",
            )
        )

    def fail(self, what: str, *, code: str = "", mark: Any = None, expected: str = "") -> None:
        raise RecipeError(
            what,
            code=code or "recipe.yaml",
            where=self.place(mark),
            expected=expected or "one YAML 1.2 document",
            next="stillroom new KIND prints a recipe that works",
        )


def dotted(path: Path) -> str:
    """Return a path as overrides write it: ``models.0.weight``."""
    return ".".join(str(part) for part in path)
