"""Fields: typed values that documents can be filtered by.

Built in are ``path``, ``title``, ``format`` (the media type), ``language`` and ``origin``. Further
ones come from a Markdown file's front matter (``date`` from a mail, too) and from the recipe's
``metadata`` file. A value is
text, a number, true or false, a date (text written ``2024-05-31``), or a list of these, which
counts as each of them.

Front matter is part of a document, so whoever writes the document writes it: it never says who may
read the document.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import DataError
from stillroom.rag.store.parts import Facts

__all__ = ["BUILT_IN", "Kind", "derive_fields", "list_values", "name_kind", "read_metadata"]

Kind = Literal["text", "number", "bool", "date"]
BUILT_IN = ("path", "title", "format", "language", "origin")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_MOST_TEXT = 1_000
_KEYS = {"path", "fields", "tenant", "labels"}


def derive_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that follow from a parsed document, given as plain JSON values."""
    told = document.get("metadata", {})
    front = {name: told[name] for name in ("date",) if name in told} | told.get("front_matter", {})
    origin = document.get("origin", {})
    return {
        **{name: value for name, value in front.items() if _is_field(name, value)},
        "path": document["path"],
        "title": document["title"],
        "format": document["media_type"],
        "language": document["language"],
        "origin": origin.get("kind", "unknown"),
    }


def list_values(fields: Mapping[str, Any]) -> Iterator[tuple[str, Kind, str | float]]:
    """Yield name, kind and value of every value; a list gives several."""
    for name, value in sorted(fields.items()):
        for one in value if isinstance(value, list) else [value]:
            kind = name_kind(one)
            yield name, kind, float(one) if kind in {"number", "bool"} else str(one)


def name_kind(value: Any) -> Kind:
    """Return the kind of a value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "date" if _DATE.fullmatch(str(value)) else "text"


def read_metadata(path: Path) -> dict[str, Facts]:
    """Read what a file of JSON lines says of documents, by path.

    A line is an object with ``path``, and any of ``fields`` (names to values), ``tenant`` and
    ``labels`` (who may read it).

    Raises:
        DataError: If a line is no such object, or a path comes twice; with its number.
    """
    facts: dict[str, Facts] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _refuse(path, 0, f"it cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _refuse(path, number, f"it is no JSON: {error}") from error
        name, own = _read_row(row, path, number)
        if name in facts:
            raise _refuse(path, number, f"{name!r} comes twice")
        facts[name] = own
    return facts


def _read_row(row: Any, path: Path, number: int) -> tuple[str, Facts]:
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or row.keys() - _KEYS:
        raise _refuse(path, number, "it is no object of path, fields, tenant and labels")
    fields, labels, tenant = row.get("fields", {}), row.get("labels", []), row.get("tenant", "")
    if not isinstance(fields, dict) or not isinstance(tenant, str):
        raise _refuse(path, number, "fields must be an object, and tenant text")
    if not isinstance(labels, list) or not all(isinstance(one, str) and one for one in labels):
        raise _refuse(path, number, "labels must be a list of texts")
    for name, value in fields.items():
        if not _NAME.fullmatch(name) or name in BUILT_IN:
            raise _refuse(path, number, f"{name!r:.80} cannot be the name of a field")
        if not _is_value(value):
            raise _refuse(path, number, f"{name} is no text, number, true, false or list of these")
    return row["path"], Facts(fields, tenant, tuple(sorted(set(labels))))


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(not isinstance(one, list) and _is_value(one) for one in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= _MOST_TEXT)


def _is_field(name: str, value: Any) -> bool:
    return _NAME.fullmatch(name) is not None and name not in BUILT_IN and _is_value(value)


def _refuse(path: Path, number: int, what: str) -> DataError:
    return DataError(
        f"the file of metadata cannot be used: {what}",
        code="rag.metadata",
        where=f"{path}:{number}" if number else str(path),
        expected='{"path": "a.md", "fields": {"year": 2024}, "tenant": "t", "labels": ["staff"]}',
        next="repair that line, and run the command again",
    )
