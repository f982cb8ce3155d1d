"""Filters: typed metadata fields, the filter language, and its compilation to SQL.

Written as text for people: ``year >= 2020 and language = en and not path ~ "drafts/*"``. Text never
becomes part of a statement: it is read into a tree here, names are held against the fields that the
index has, kinds against theirs, and values are bound.

``=`` holds where any value of the field equals, ``!=`` where none does (so also where the field is
missing); ``<``, ``<=``, ``>``, ``>=`` compare numbers, dates or texts; ``~`` matches a pattern of
``*`` and ``?``; ``in (a, b)``; ``exists(author)``; ``and``, ``or``, ``not`` and parentheses.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import DataError
from stillroom.rag.types import DocumentMetadata

__all__ = [
    "BUILT_IN_FIELDS",
    "SQLITE_DIALECT",
    "FieldKind",
    "FilterExpression",
    "SqlCondition",
    "SqlDialect",
    "compile_filter",
    "derive_fields",
    "infer_kind",
    "list_values",
    "make_unknown_field_error",
    "parse_filter",
    "read_metadata",
]


FieldKind = Literal["text", "number", "bool", "date"]


BUILT_IN_FIELDS = ("path", "title", "format", "language", "origin")


_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


_MAX_TEXT = 1_000


_ROW_KEYS = {"path", "fields", "tenant", "labels"}


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


def list_values(fields: Mapping[str, Any]) -> Iterator[tuple[str, FieldKind, str | float]]:
    """Yield name, kind and value of every value; a list gives several."""
    for name, value in sorted(fields.items()):
        for one in value if isinstance(value, list) else [value]:
            kind = infer_kind(one)
            yield name, kind, float(one) if kind in {"number", "bool"} else str(one)


def infer_kind(value: Any) -> FieldKind:
    """Return the kind of a value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "date" if _DATE.fullmatch(str(value)) else "text"


def read_metadata(path: Path) -> dict[str, DocumentMetadata]:
    """Read what a file of JSON lines says of documents, by path.

    A line is an object with ``path``, and any of ``fields`` (names to values), ``tenant`` and
    ``labels`` (who may read it).

    Raises:
        DataError: If a line is no such object, or a path comes twice; with its number.
    """
    facts: dict[str, DocumentMetadata] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _make_metadata_error(path, 0, f"it cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _make_metadata_error(path, number, f"it is no JSON: {error}") from error
        name, own = _read_row(row, path, number)
        if name in facts:
            raise _make_metadata_error(path, number, f"{name!r} comes twice")
        facts[name] = own
    return facts


def _read_row(row: Any, path: Path, number: int) -> tuple[str, DocumentMetadata]:
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or row.keys() - _ROW_KEYS:
        raise _make_metadata_error(
            path, number, "it is no object of path, fields, tenant and labels"
        )
    fields, labels, tenant = row.get("fields", {}), row.get("labels", []), row.get("tenant", "")
    if not isinstance(fields, dict) or not isinstance(tenant, str):
        raise _make_metadata_error(path, number, "fields must be an object, and tenant text")
    if not isinstance(labels, list) or not all(isinstance(one, str) and one for one in labels):
        raise _make_metadata_error(path, number, "labels must be a list of texts")
    for name, value in fields.items():
        if not _FIELD_NAME.fullmatch(name) or name in BUILT_IN_FIELDS:
            raise _make_metadata_error(path, number, f"{name!r:.80} cannot be the name of a field")
        if not _is_value(value):
            raise _make_metadata_error(
                path, number, f"{name} is no text, number, true, false or list of these"
            )
    return row["path"], DocumentMetadata(fields, tenant, tuple(sorted(set(labels))))


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(not isinstance(one, list) and _is_value(one) for one in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= _MAX_TEXT)


def _is_field(name: str, value: Any) -> bool:
    return (
        _FIELD_NAME.fullmatch(name) is not None and name not in BUILT_IN_FIELDS and _is_value(value)
    )


def _make_metadata_error(path: Path, number: int, what: str) -> DataError:
    return DataError(
        f"the file of metadata cannot be used: {what}",
        code="rag.metadata",
        where=f"{path}:{number}" if number else str(path),
        expected='{"path": "a.md", "fields": {"year": 2024}, "tenant": "t", "labels": ["staff"]}',
        next="repair that line, and run the command again",
    )


Operator = Literal["=", "!=", "<", "<=", ">", ">=", "~", "in", "exists", "and", "or", "not"]


_TOKEN = re.compile(
    r"\s*(?:(?P<mark><=|>=|!=|[=<>~(),])"
    r'|"(?P<double>(?:[^"\\]|\\.)*)"'
    r"|'(?P<single>(?:[^'\\]|\\.)*)'"
    r"|(?P<word>[^\s()=<>!~,\"']+))"
)


_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


_MAX_CHARACTERS = 8_192


_MAX_TERMS = 256


_MAX_DEPTH = 32


_COMPARABLE_KINDS: Mapping[FieldKind, tuple[FieldKind, ...]] = {
    "text": ("text", "date"),
    "date": ("date", "text"),
    "number": ("number",),
    "bool": ("bool",),
}


@dataclass(frozen=True, slots=True)
class FilterExpression:
    """One node: a comparison of a field with values, or an operator over other nodes."""

    operator: Operator
    field: str = ""
    values: tuple[Any, ...] = ()
    parts: tuple[FilterExpression, ...] = ()

    def __and__(self, other: FilterExpression) -> FilterExpression:
        """Return the filter that both meet."""
        return FilterExpression("and", parts=(self, other))


@dataclass(frozen=True, slots=True)
class SqlCondition:
    """A condition on ``d``, a row of documents, and what its names stand for."""

    sql: str = "1 = 1"
    values: tuple[tuple[str, Any], ...] = ()

    def join(self, other: SqlCondition) -> SqlCondition:
        """Return the condition that both meet."""
        return SqlCondition(f"({self.sql}) AND ({other.sql})", (*self.values, *other.values))


def _translate_glob(pattern: str) -> str:
    """Return a pattern in which only * and ? mean something."""
    return pattern.replace("[", "[[]")


@dataclass(frozen=True, slots=True)
class SqlDialect:
    """How a store's statements compare the value of a field, a row of ``fields``.

    ``words`` and ``number`` are the columns that hold texts and numbers; ``match`` is the operator
    of patterns and ``pattern`` what makes its pattern of ours; ``clean`` makes of a text what the
    column holds of it.
    """

    words: str = "value"
    number: str = "value"
    match: str = "GLOB"
    pattern: Callable[[str], str] = _translate_glob
    clean: Callable[[str], str] = str


SQLITE_DIALECT = SqlDialect()


def parse_filter(text: str) -> FilterExpression:
    """Read a filter from text.

    Raises:
        DataError: If it is no filter; the place is named.
    """
    if len(text) > _MAX_CHARACTERS:
        raise _make_filter_error(text, len(text), f"it has {len(text)} characters")
    reader = _FilterParser(text, list(_tokenize_filter(text)))
    found = reader.read_or(0)
    if reader.at < len(reader.tokens):
        raise reader.refuse("something follows where it should end")
    return found


def compile_filter(
    wanted: FilterExpression,
    known: Mapping[str, frozenset[FieldKind]],
    prefix: str,
    dialect: SqlDialect = SQLITE_DIALECT,
) -> SqlCondition:
    """Return the condition that a filter is, with its values bound.

    Args:
        wanted: The filter.
        known: The fields there are, with the kinds of their values.
        prefix: What the names of values begin with; different for filters that are joined.
        dialect: How the store compares.

    Raises:
        DataError: If a field is unknown, or compared with another kind of value.
    """
    values: list[tuple[str, Any]] = []

    def bind(value: Any) -> str:
        name = f"{prefix}{len(values)}"
        is_number = isinstance(value, bool | int | float)
        values.append((name, float(value) if is_number else dialect.clean(str(value))))
        return f":{name}"

    def compile_node(node: FilterExpression) -> str:
        if node.operator in {"and", "or"}:
            inner = [f"({compile_node(part)})" for part in node.parts]
            return f" {node.operator.upper()} ".join(inner) or "1 = 1"
        if node.operator == "not":
            return f"NOT ({compile_node(node.parts[0])})"
        if node.operator == "!=":
            return f"NOT ({compile_node(FilterExpression('=', node.field, node.values))})"
        _check_field(node, known)
        test = f"name = {bind(node.field)}{_compile_comparison(node, bind, dialect)}"
        return f"d.key IN (SELECT document FROM fields WHERE {test})"  # noqa: S608

    sql = compile_node(wanted)
    return SqlCondition(sql, tuple(values))


def _compile_comparison(node: FilterExpression, bind: Any, dialect: SqlDialect) -> str:
    """Return the rest of a comparison's condition; the operator is one of ours."""
    if node.operator == "exists":
        return ""
    if node.operator == "~":
        pattern = bind(dialect.pattern(str(node.values[0])))
        return f" AND kind IN ('text', 'date') AND {dialect.words} {dialect.match} {pattern}"
    tests = []
    operator = "=" if node.operator == "in" else node.operator
    for value in node.values:
        alike = _COMPARABLE_KINDS[infer_kind(value)]
        column = dialect.words if "text" in alike else dialect.number
        kinds = ", ".join(f"'{kind}'" for kind in alike)
        tests.append(f"(kind IN ({kinds}) AND {column} {operator} {bind(value)})")
    return f" AND ({' OR '.join(tests) or '1 = 0'})"


def make_unknown_field_error(name: str, known: Iterable[str]) -> DataError:
    """Return the error of a field that no document has."""
    return DataError(
        f"no document has a field {name!r:.80}",
        code="rag.unknown-field",
        expected=f"one of: {', '.join(sorted(known))}",
        next="check the name; fields come from front matter and the recipe's metadata",
    )


def _check_field(node: FilterExpression, known: Mapping[str, frozenset[FieldKind]]) -> None:
    if node.field not in known:
        raise make_unknown_field_error(node.field, known)
    kinds = known[node.field]
    for value in node.values:
        wanted = ("text", "date") if node.operator == "~" else _COMPARABLE_KINDS[infer_kind(value)]
        if not kinds & set(wanted):
            raise DataError(
                f"{node.field} holds {' or '.join(sorted(kinds))}, and is compared with "
                f"{value!r:.80}, which is {infer_kind(value)}",
                code="rag.filter-kind",
                expected=f"a value as the field has them: {', '.join(sorted(kinds))}",
                next='write texts in quotes ("2024"), numbers without, dates as 2024-05-31',
            )


def _tokenize_filter(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield kind (mark, text or word), value and place of every token."""
    at = 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if found is None:
            raise _make_filter_error(text, at, "it cannot be read")
        start = found.start(found.lastgroup or 0)
        if found.lastgroup in {"double", "single"}:
            yield "text", re.sub(r"\\(.)", r"\1", found.group(found.lastgroup)), start
        else:
            yield str(found.lastgroup), found.group(found.lastgroup or 0), start
        at = found.end()


class _FilterParser:
    """Reads tokens by recursive descent, depth and number of comparisons bounded."""

    def __init__(self, text: str, tokens: Sequence[tuple[str, str, int]]) -> None:
        self.text, self.tokens, self.at, self.count = text, tokens, 0, 0

    def read_or(self, depth: int) -> FilterExpression:
        if depth > _MAX_DEPTH:
            raise self.refuse(f"it is nested more than {_MAX_DEPTH} times")
        return self._read_many("or", self._read_and, depth)

    def refuse(self, what: str) -> DataError:
        place = self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.text)
        return _make_filter_error(self.text, place, what)

    def _read_many(self, word: Literal["and", "or"], read: Any, depth: int) -> FilterExpression:
        parts = [read(depth)]
        while self._take_word(word):
            parts.append(read(depth))
        return parts[0] if len(parts) == 1 else FilterExpression(word, parts=tuple(parts))

    def _read_and(self, depth: int) -> FilterExpression:
        return self._read_many("and", self._read_not, depth)

    def _read_not(self, depth: int) -> FilterExpression:
        if self._take_word("not"):
            if depth > _MAX_DEPTH:
                raise self.refuse(f"it is nested more than {_MAX_DEPTH} times")
            return FilterExpression("not", parts=(self._read_not(depth + 1),))
        if self._take_mark("("):
            inner = self.read_or(depth + 1)
            self._expect(")")
            return inner
        return self._read_comparison()

    def _read_comparison(self) -> FilterExpression:
        self.count += 1
        if self.count > _MAX_TERMS:
            raise self.refuse(f"it has more than {_MAX_TERMS} comparisons")
        name = self._next("word", "the name of a field")
        if name.lower() == "exists" and self._take_mark("("):
            field = self._next("word", "the name of a field")
            self._expect(")")
            return FilterExpression("exists", field)
        if self._take_word("in"):
            return FilterExpression("in", name, tuple(self._read_list()))
        for operator in ("<=", ">=", "!=", "=", "<", ">", "~"):
            if self._take_mark(operator):
                return FilterExpression(operator, name, (self._read_value(),))
        raise self.refuse("a field is followed by =, !=, <, <=, >, >=, ~ or in")

    def _read_list(self) -> Iterator[Any]:
        self._expect("(")
        yield self._read_value()
        while self._take_mark(","):
            yield self._read_value()
        self._expect(")")

    def _read_value(self) -> Any:
        if self.at >= len(self.tokens) or self.tokens[self.at][0] == "mark":
            raise self.refuse("a value is missing")
        kind, value, _ = self.tokens[self.at]
        self.at += 1
        if kind == "text":
            return value
        if value.lower() in {"true", "false"}:
            return value.lower() == "true"
        return float(value) if _NUMBER.fullmatch(value) else value

    def _next(self, kind: str, what: str) -> str:
        if self.at >= len(self.tokens) or self.tokens[self.at][0] != kind:
            raise self.refuse(f"{what} is missing")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def _take_word(self, word: str) -> bool:
        return self._take("word", word)

    def _take_mark(self, mark: str) -> bool:
        return self._take("mark", mark)

    def _take(self, kind: str, value: str) -> bool:
        if self.at == len(self.tokens):
            return False
        is_it = self.tokens[self.at][0] == kind and self.tokens[self.at][1].lower() == value
        self.at += is_it
        return is_it

    def _expect(self, mark: str) -> None:
        if not self._take_mark(mark):
            raise self.refuse(f"{mark} is missing")


def _make_filter_error(text: str, at: int, what: str) -> DataError:
    return DataError(
        f"the filter cannot be read: {what}",
        code="rag.bad-filter",
        where=f"character {at + 1}: {text[:at][-30:]}⟨{text[at:][:30]}⟩",
        expected='comparisons as year >= 2020, language = en, path ~ "docs/*", tag in (a, b)',
        next="join them by and, or, not; write texts with spaces in quotes",
    )
