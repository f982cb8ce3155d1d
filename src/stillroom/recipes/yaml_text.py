"""YAML 1.2 reader with source positions, and a deterministic writer.

A strict subset: one UTF-8 document of mappings with plain keys, sequences and scalars of the core
schema. Tags, anchors and aliases are refused, as are duplicate keys and documents that are too
large or too deep.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn

from stillroom.errors import Problem, RecipeError
from stillroom.recipes.settings import Recipe

__all__ = [
    "YamlTree",
    "dump_recipe",
    "emit_scalar",
    "emit_yaml",
    "format_path",
    "load_foreign_yaml",
    "read_yaml",
    "resolve_scalar",
]

MAX_TEXT_BYTES = 256 * 1024
MAX_DEPTH = 32
_MAX_CACHED_TEXT = 16 * 1024
KeyPath = tuple[str | int, ...]
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
class YamlTree:
    """Plain values, with the positions of key and value for every path."""

    data: Any = None
    keys: dict[KeyPath, str] = field(default_factory=dict)
    values: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place_of_key(self, path: KeyPath) -> str:
        """Return the position of the key, or of the nearest enclosing one."""
        return self._nearest(path, self.keys)

    def place_of_value(self, path: KeyPath) -> str:
        """Return the position of the value, or of the nearest enclosing one."""
        return self._nearest(path, self.values)

    def holds(self, path: KeyPath) -> bool:
        """Return whether the text has a value at the path."""
        return path in self.values

    def _nearest(self, path: KeyPath, places: Mapping[KeyPath, str]) -> str:
        for length in range(len(path), -1, -1):
            if path[:length] in places:
                return places[path[:length]]
            if path[:length] in self.values:
                return self.values[path[:length]]
        return ""


def read_yaml(text: str, where: str) -> YamlTree:
    """Read one YAML document.

    ``where`` is the prefix of positions, such as a file name.

    Returns:
        The values with their positions; ``problems`` are the recoverable ones (duplicate keys,
        tags, anchors).

    Raises:
        RecipeError: If the text is not YAML, too large, or too deep.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise RecipeError(
            "the recipe is too large",
            code="recipe.too-large",
            where=where,
            expected=f"at most {MAX_TEXT_BYTES // 1024} KiB",
            next="keep data in files of its own and name them in the recipe",
        )
    if len(text) > _MAX_CACHED_TEXT:
        return _TreeBuilder(where).build(text)
    tree = _build_tree(text, where)
    # A copy, which overrides may change.
    return YamlTree(deepcopy(tree.data), dict(tree.keys), dict(tree.values), list(tree.problems))


@lru_cache(maxsize=32)
def _build_tree(text: str, where: str) -> YamlTree:
    """Return the tree of a short text; a flow and its replay read the same ones many times."""
    return _TreeBuilder(where).build(text)


def load_foreign_yaml(text: str) -> Any:
    """Return the plain values of YAML in a stranger's file, such as front matter.

    Raises:
        ValueError: If the text is not YAML, unfolds by aliases to over MAX_TEXT_BYTES characters,
            or is nested deeper than MAX_DEPTH, which takes quadratic time.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML(typ="safe", pure=True)
    try:
        _check_unfolded(yaml.parse(text))
        return yaml.load(text)
    except YAMLError as error:
        raise ValueError(str(error)) from error


def _check_unfolded(events: Iterator[Any]) -> None:
    """Refuse YAML whose values are too large or too deep once each alias is what it stands for."""
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    anchors: dict[str, tuple[int, int]] = {}  # characters and depth of each value with a name
    path: list[tuple[str | None, int, int]] = [(None, 0, 0)]  # of the collections that are open
    for event in events:
        anchor, size, depth = None, 0, 0
        if isinstance(event, CollectionStartEvent):
            path.append((event.anchor, 1, 1))
        elif isinstance(event, CollectionEndEvent):
            anchor, size, depth = path.pop()
        elif isinstance(event, ScalarEvent):
            anchor, size = event.anchor, 1 + len(event.value)
        elif isinstance(event, AliasEvent):
            if any(name == event.anchor for name, *_ in path):
                raise ValueError("a value is within itself")
            size, depth = anchors.get(event.anchor, (0, 0))
        if anchor:
            anchors[anchor] = size, depth
        name, total, deepest = path[-1]
        path[-1] = name, total + size, max(deepest, depth + 1)
        if total + size > MAX_TEXT_BYTES:
            raise ValueError(f"aliases unfold to over {MAX_TEXT_BYTES} characters")
        if len(path) + depth - 1 > MAX_DEPTH:
            raise ValueError("values are nested too deeply")


def resolve_scalar(text: str) -> Any:
    """Resolve a plain scalar in the core schema of YAML 1.2."""
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


class _TreeBuilder:
    """Builds a YamlTree from the parser's events; recursion is limited by MAX_DEPTH."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.tree = YamlTree()
        self.events: Iterator[Any] = iter(())

    def build(self, text: str) -> YamlTree:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError

        text = self.read_text(text)
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

    def node(self, event: Any, path: KeyPath, depth: int) -> Any:
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
        text = self.read_text(event.value, event.start_mark)
        return resolve_scalar(text) if event.implicit[0] else text

    def mapping(self, path: KeyPath, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while type(event := next(self.events)).__name__ != "MappingEndEvent":
            place = self.place(event.start_mark)
            if type(event).__name__ != "ScalarEvent":
                self.fail(
                    "a key is not a word",
                    mark=event.start_mark,
                    expected="keys of plain text",
                )
            key = self.read_text(event.value, event.start_mark)
            if event.anchor is not None or event.tag is not None:
                self.refuse(f"the anchor or tag of the key '{key}'", event)
            here = (*path, key)
            if key in mapping:
                self.tree.problems.append(
                    Problem(
                        f"{format_path(here)} is set twice",
                        "recipe.duplicate-key",
                        place,
                        f"it once, as at {self.tree.keys[here]}",
                        "remove one of the two",
                    )
                )
                self.node(next(self.events), ("", *here), depth + 1)
                continue
            self.tree.keys[here] = place
            mapping[key] = self.node(next(self.events), here, depth + 1)
        return mapping

    def sequence(self, path: KeyPath, depth: int) -> list[Any]:
        sequence: list[Any] = []
        while type(event := next(self.events)).__name__ != "SequenceEndEvent":
            sequence.append(self.node(event, (*path, len(sequence)), depth + 1))
        return sequence

    def read_text(self, text: str, mark: Any = None) -> str:
        """Return a text with the letters that JSON escapes as a pair of surrogates."""
        try:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self.fail(
                "the recipe, or a name that it states, is not UTF-8",
                code="recipe.encoding",
                mark=mark,
                expected="UTF-8 text; rename a file or folder whose name is not",
            )

    def place(self, mark: Any) -> str:
        return f"{self.where}:{mark.line + 1}:{mark.column + 1}" if mark else self.where

    def refuse(self, message: str, event: Any) -> None:
        self.tree.problems.append(
            Problem(
                f"{message} is not part of a recipe",
                "recipe.yaml-feature",
                self.place(event.start_mark),
                "plain YAML without tags, anchors and aliases",
                "write the value itself",
            )
        )

    def fail(
        self, message: str, *, code: str = "", mark: Any = None, expected: str = ""
    ) -> NoReturn:
        raise RecipeError(
            message,
            code=code or "recipe.yaml",
            where=self.place(mark),
            expected=expected or "one YAML 1.2 document",
            next="stillroom new KIND prints a recipe that works",
        )


def format_path(path: KeyPath) -> str:
    """Return a path in override syntax: ``models.0.weight``."""
    return ".".join(str(part) for part in path)


_PLAIN = re.compile(r"[A-Za-z0-9_./~][\w./@+=~-]*(?:[ :][\w./@+=~-]+)*")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe: every setting with its value; secrets as references."""
    return "\n".join(emit_yaml(recipe.model_dump(mode="json", by_alias=True))) + "\n"


def emit_yaml(value: Any, indent: int = 0) -> Iterator[str]:
    """Yield the lines of a mapping or a sequence in block style."""
    space = " " * indent
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _emit_entry(f"{space}{emit_scalar(str(key))}:", part, indent)
    else:
        for part in value:
            yield from _emit_entry(f"{space}-", part, indent)


def emit_scalar(value: Any) -> str:
    """Return one scalar, or an empty container, on one line."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float():
            mantissa, e, exponent = repr(value).partition("e")
            return f"{mantissa}{'' if '.' in mantissa or not e else '.0'}{e}{exponent}"
        case int():
            return str(value)
        case str():
            return value if _is_plain(value) else f'"{"".join(map(_escape, value))}"'
        case Mapping():
            return "{}"
    return "[]"


def _emit_entry(head: str, value: Any, indent: int) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple) and value:
        yield head
        yield from emit_yaml(value, indent + 2)
    elif isinstance(value, str) and (mark := _literal_header(value)):
        yield f"{head} {mark}"
        for line in value.removesuffix("\n").split("\n"):
            yield f"{' ' * (indent + 2)}{line}" if line else ""
    else:
        yield f"{head} {emit_scalar(value)}"


def _is_plain(text: str) -> bool:
    return (
        text.isascii()
        and len(text) <= 200
        and _PLAIN.fullmatch(text) is not None
        and not text.startswith("...")
        and isinstance(resolve_scalar(text), str)
    )


def _literal_header(text: str) -> str:
    """Return the header of a literal block that represents the text exactly, or ''."""
    body = text.removesuffix("\n")
    lines = body.split("\n")
    if len(lines) < 2 or not lines[0].strip() or not lines[-1].strip():
        return ""
    if lines[0][0] == " " or any(not line.isprintable() for line in lines):
        return ""
    if any(line and not line.strip() for line in lines):
        return ""
    return "|" if text.endswith("\n") else "|-"


def _escape(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    if letter == " " or letter.isprintable():
        return letter
    number = ord(letter)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
