"""Entities of XML: what a file and the others of its folder declare, expanded within bounds.

Declarations are read by pattern, not by an XML parser: nothing is fetched, no file outside the
folder is opened, and an expansion that is nested deeply or grows long is refused, so that a few
lines cannot stand for gigabytes (billion laughs).

Source: Extensible Markup Language (XML) 1.0, fifth edition, sections 4.2 and 4.4.
"""

from __future__ import annotations

import html
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from html.entities import html5
from itertools import islice
from pathlib import Path

__all__ = ["ENTITY_SUFFIXES", "EntityExpander", "find_subset", "read_entity_declarations"]

_SUBSET = re.compile(r"<!DOCTYPE[^\[>]{0,1000}\[.*?\]\s*>", re.DOTALL)
_NAME = r"[A-Za-z_:][\w.:-]{0,63}"
_LITERAL = r"""(?:"[^"]*+"|'[^']*+')"""
_DECLARATION = re.compile(
    rf"<!ENTITY\s++(?P<parameter>%\s++)?(?P<name>{_NAME})\s++"
    rf"(?P<external>SYSTEM\s++|PUBLIC\s++{_LITERAL}\s++)?(?P<value>{_LITERAL})"
)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_REFERENCE = re.compile(rf"&({_NAME});")
_CHARACTER = re.compile(r"&#[xX]?[0-9a-fA-F]{1,7};")
_PREDEFINED = frozenset({"amp", "lt", "gt", "apos", "quot"})
_SPACE = re.compile(r"\s+")
_TAG = re.compile(r"<[^<>]*>")
_CDATA = re.compile(r"<!\[CDATA\[.*?(?:\]\]>|\Z)", re.DOTALL)
ENTITY_SUFFIXES = (".ent", ".mod")
_DOCUMENT_SUFFIXES = (".xml", ".docbook", ".dbk")
_MAX_FILES, _MAX_LOOKED = 32, 256  # that are read, and looked for
_MAX_FILE_BYTES = 256 * 1024
_MAX_SUBSET_BYTES = 16 * 1024  # of another document, whose start alone declares
_MAX_DEPTH = 8
_MAX_EXPANSION = 2000  # characters
_MAX_EXPANDED = 1_000_000  # of one document


def find_subset(text: str) -> re.Match[str] | None:
    """Return the document type declaration of a text, if it has declarations of its own."""
    return _SUBSET.match(text, max(text.find("<!DOCTYPE"), 0))


def read_entity_declarations(text: str, file: Path, root: Path) -> dict[str, str]:
    """Return the values of entities that other files declare for a document, by name.

    Files are those that its declarations name, then those in its folder: lists of entities
    (``.ent``, ``.mod``), and the declarations of other documents. The first declaration of a name
    counts, of other documents that of one that includes this one. At most 256 files below ``root``
    are looked for, and read to 256 KiB each until 32 declare entities.

    Args:
        text: Start of the document, with its declarations.
        file: Its file.
        root: The folder that is read; nothing outside of it is opened.
    """
    found, near = dict[str, str](), dict[str, str]()
    includes = re.compile(rf"""["'/]{re.escape(file.name)}["']""")
    waiting = [*_list_named(_get_subset(text), file), *_list_beside(file)]
    limit, seen, count = root.resolve(), {file.resolve()}, 0
    for path in islice(waiting, _MAX_LOOKED):  # grows during iteration
        try:
            place = path.resolve()
        except (RuntimeError, ValueError):  # a loop of links, or no name of a file
            continue
        if place in seen or not place.is_relative_to(limit) or count == _MAX_FILES:
            continue
        seen.add(place)
        is_list = place.suffix.lower() not in _DOCUMENT_SUFFIXES
        content = _read_start(place, _MAX_FILE_BYTES if is_list else _MAX_SUBSET_BYTES)
        declared = content if is_list else _get_subset(content)
        waiting += _list_named(declared, place)
        values = dict(reversed([*_iter_declared(declared)]))  # the first of a name counts
        count += bool(values)
        target = near if not is_list and includes.search(declared) else found
        target |= values | target
    return found | near


class EntityExpander:
    """Expands the entities of one document; those that nothing declares become their name."""

    def __init__(self, text: str, others: Mapping[str, str]) -> None:
        """Read the document's own declarations, which come before those of other files."""
        own: dict[str, str] = {}
        for name, value in _iter_declared(_get_subset(text)):
            own.setdefault(name, value)
        self._declared = {**others, **own}
        self._expanded: dict[str, str | None] = {}
        literal = [match.span() for match in _CDATA.finditer(text)]
        self._starts, self._ends = [start for start, _ in literal], [end for _, end in literal]
        self._left = _MAX_EXPANDED

    def iter_references(self, text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
        """Yield start, end and expansion of every entity within a part of the document."""
        for match in _REFERENCE.finditer(text, start, end):
            before = bisect_right(self._starts, match.start())
            if not before or self._ends[before - 1] <= match.start():
                yield match.start(), match.end(), self._expand_once(match[1])

    def _expand_once(self, name: str) -> str:
        """Return the text of an entity; its name if it is unknown or its expansion too large."""
        expanded = self._expand(name, 0)
        if expanded is None or len(expanded) > self._left:
            return name
        self._left -= len(expanded)
        return expanded

    def _expand(self, name: str, depth: int) -> str | None:
        value = None if name in _PREDEFINED else self._declared.get(name)
        if value is None:
            return html5.get(f"{name};", name)
        if depth == _MAX_DEPTH:
            return None
        if name not in self._expanded:
            self._expanded[name] = None  # what refers to itself has no expansion
            self._expanded[name] = self._expand_value(value, depth)
        return self._expanded[name]

    def _expand_value(self, value: str, depth: int) -> str | None:
        value = _TAG.sub("", _CHARACTER.sub(lambda match: html.unescape(match[0]), value))
        parts, size, position = list[str](), 0, 0
        for match in _REFERENCE.finditer(value):
            inner = self._expand(match[1], depth + 1)
            if inner is None or size > _MAX_EXPANSION:
                return None
            parts += [value[position : match.start()], inner]
            size += len(parts[-2]) + len(inner)
            position = match.end()
        text = _SPACE.sub(" ", "".join([*parts, value[position:]]))
        return text if len(text) <= _MAX_EXPANSION else None


def _get_subset(text: str) -> str:
    subset = find_subset(text)
    return subset[0] if subset else ""


def _iter_declared(text: str) -> Iterator[tuple[str, str]]:
    """Yield name and value of general entities; '' for a file, which is a document of its own."""
    for match in _DECLARATION.finditer(_COMMENT.sub("", text)):
        if not match["parameter"]:
            yield match["name"], "" if match["external"] else match["value"][1:-1]


def _list_named(text: str, file: Path) -> list[Path]:
    """Return the files that the parameter entities of a text name beside its file."""
    return [
        file.parent / match["value"][1:-1]
        for match in _DECLARATION.finditer(_COMMENT.sub("", text))
        if match["parameter"] and match["external"] and ":" not in match["value"]
    ]


def _list_beside(file: Path) -> list[Path]:
    """Return the lists of entities in a file's folder, then the other documents."""
    try:
        names = sorted(os.listdir(file.parent))  # noqa: PTH208 (paths are slow, folders large)
    except OSError:
        return []
    found = (
        file.parent / name
        for suffixes in (ENTITY_SUFFIXES, _DOCUMENT_SUFFIXES)
        for name in names
        if name.lower().endswith(suffixes)
    )
    return list(islice(found, _MAX_LOOKED))


def _read_start(path: Path, size: int) -> str:
    """Return the start of a file; empty if it is no file that can be read."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as opened:
            return opened.read(size).decode("utf-8", "replace")
    except OSError:
        return ""
