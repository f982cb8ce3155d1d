"""Metadata filters: typed fields, the filter language, and its compilation to SQL.

A filter is text, such as ``year >= 2020 and language = en and not path ~ "drafts/*"``. The text is
parsed into a tree, names and types are checked against the fields of the index, and values are
bound as parameters: no part of the text is inserted into an SQL statement.

``=`` matches if any value of the field is equal, ``!=`` if none is (also where the field is
missing); ``<``, ``<=``, ``>``, ``>=`` compare numbers, dates or texts; ``~`` matches a pattern with
``*`` and ``?``; ``in (a, b)``; ``exists(author)``; ``and``, ``or``, ``not`` and parentheses.

Built-in fields are ``path``, ``title``, ``format`` (the media type), ``language`` and ``origin``.
Others come from a Markdown file's front matter, from a mail (``date``), and from the recipe's
``metadata`` file. A value is text, a number, true or false, a date (text such as ``2024-05-31``),
or a list of these, which counts as each of its items. Whole numbers of front matter from 2^53 on
are texts.

Front matter is written by the author of a document, so it never grants access to the document.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import DataError
from stillroom.objects.disk import require_file
from stillroom.provenance.digests import build_unique_object, load_json
from stillroom.rag.types import DocumentMetadata

__all__ = [
    "FIRST_INEXACT",
    "SQLITE_DIALECT",
    "FieldKind",
    "FilterExpression",
    "SqlCondition",
    "SqlDialect",
    "compile_filter",
    "derive_fields",
    "list_mixed_comparisons",
    "list_values",
    "make_unknown_field_error",
    "parse_filter",
    "read_metadata",
]


FieldKind = Literal["text", "number", "bool", "date"]
_BUILT_IN_FIELDS = ("path", "title", "format", "language", "origin")
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_MAX_TEXT = 1_000
FIRST_INEXACT = 2**sys.float_info.mant_dig
"""First whole number whose float is also that of another."""
_MAX_WRITTEN = 10**4000
"""Python writes whole numbers of up to 4300 digits."""

_ROW_KEYS = {"path", "fields", "tenant", "labels"}


def derive_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a parsed document, given as JSON values."""
    metadata = document.get("metadata", {})
    front = {name: metadata[name] for name in ("date",) if name in metadata} | metadata.get(
        "front_matter", {}
    )
    origin = document.get("origin", {})
    return {
        **{name: value for name, value in _write_out(front) if _is_field(name, value)},
        "path": document["path"],
        "title": document["title"],
        "format": document["media_type"],
        "language": document["language"],
        "origin": origin.get("kind", "unknown"),
    }


def _write_out(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield fields with whole numbers beyond any float as text, by which they are found."""

    def write(value: Any) -> Any:
        is_large = isinstance(value, int) and sys.float_info.max < abs(value) < _MAX_WRITTEN
        return str(value) if is_large else value

    for name, value in fields.items():
        yield name, list(map(write, value)) if isinstance(value, list) else write(value)


def list_values(
    fields: Mapping[str, Any], *, rounded: bool = False
) -> Iterator[tuple[str, FieldKind, str | float]]:
    """Yield name, type and value of every value; a list yields several.

    A whole number that is not exact as a float is a text, by which it can be found; with
    ``rounded`` it is that float, as in indexes of earlier versions.
    """
    for name, value in sorted(fields.items()):
        for item in value if isinstance(value, list) else [value]:
            kind = "text" if _is_inexact(item) and not rounded else _infer_kind(item)
            yield name, kind, float(item) if kind in {"number", "bool"} else str(item)


def _infer_kind(value: Any) -> FieldKind:
    """Return the type of a value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "date" if _DATE.fullmatch(str(value)) else "text"


class _NoDay(str):
    """An unquoted value that looks like a date that no calendar has."""


def _is_day(value: str) -> bool:
    with suppress(ValueError):
        return bool(date.fromisoformat(value))
    return False


def read_metadata(path: Path) -> dict[str, DocumentMetadata]:
    """Read the metadata of documents from a file of JSON lines, by path.

    A line is an object with ``path``, and optionally ``fields`` (names to values), ``tenant`` and
    ``labels`` (of principals that may read it).

    Raises:
        DataError: If a line is not such an object, or a path is repeated; with the line number.
    """
    metadata_by_path: dict[str, DocumentMetadata] = {}
    try:
        lines = require_file(path).read_text(encoding="utf-8").split("\n")  # not at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise _make_metadata_error(path, 0, f"it cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = load_json(line, object_pairs_hook=build_unique_object)
        except ValueError as error:
            raise _make_metadata_error(path, number, f"it is not JSON: {error}") from error
        name, metadata = _read_row(row, path, number)
        if name in metadata_by_path:
            raise _make_metadata_error(path, number, f"{name!r} is repeated")
        metadata_by_path[name] = metadata
    return metadata_by_path


def _read_row(row: Any, path: Path, number: int) -> tuple[str, DocumentMetadata]:
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or row.keys() - _ROW_KEYS:
        raise _make_metadata_error(
            path, number, "it is not an object of path, fields, tenant and labels"
        )
    fields, labels, tenant = row.get("fields", {}), row.get("labels", []), row.get("tenant", "")
    if not isinstance(fields, dict) or not isinstance(tenant, str):
        raise _make_metadata_error(path, number, "fields must be an object, and tenant text")
    if not isinstance(labels, list) or not all(
        isinstance(label, str) and label for label in labels
    ):
        raise _make_metadata_error(path, number, "labels must be a list of texts")
    for name, value in fields.items():
        if not _FIELD_NAME.fullmatch(name) or name in _BUILT_IN_FIELDS:
            raise _make_metadata_error(path, number, f"{name!r:.80} is not a valid field name")
        if not _is_value(value):
            raise _make_metadata_error(
                path, number, f"{name} is not text, a number, true, false or a list of these"
            )
        if any(map(_is_inexact, value if isinstance(value, list) else [value])):
            raise _make_metadata_error(
                path, number, f"{name} has a whole number that is not exact: write it as text"
            )
    return row["path"], DocumentMetadata(fields, tenant, tuple(sorted(set(labels))))


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(not isinstance(item, list) and _is_value(item) for item in value)
    if isinstance(value, bool | int | float):
        return abs(value) <= sys.float_info.max  # a column holds it: neither NaN nor too large
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _is_inexact(value: Any) -> bool:
    """Return whether the float that a column holds may be that of another whole number, too."""
    return isinstance(value, int) and abs(value) >= FIRST_INEXACT


def _is_field(name: str, value: Any) -> bool:
    return (
        _FIELD_NAME.fullmatch(name) is not None
        and name not in _BUILT_IN_FIELDS
        and _is_value(value)
    )


def _make_metadata_error(path: Path, number: int, problem: str) -> DataError:
    return DataError(
        f"the metadata file cannot be used: {problem}",
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
    """Node of a filter: a comparison of a field with values, or an operator over other nodes."""

    operator: Operator
    field: str = ""
    values: tuple[Any, ...] = ()
    parts: tuple[FilterExpression, ...] = ()

    def __and__(self, other: FilterExpression) -> FilterExpression:
        return FilterExpression("and", parts=(self, other))


@dataclass(frozen=True, slots=True)
class SqlCondition:
    """SQL condition on ``d``, a row of documents, with the values of its parameters."""

    sql: str = "1 = 1"
    values: tuple[tuple[str, Any], ...] = ()

    def join(self, other: SqlCondition) -> SqlCondition:
        """Return the conjunction of two conditions."""
        return SqlCondition(f"({self.sql}) AND ({other.sql})", (*self.values, *other.values))


def _translate_glob(pattern: str) -> str:
    """Return a GLOB pattern in which only * and ? are special."""
    return pattern.replace("[", "[[]")


@dataclass(frozen=True, slots=True)
class SqlDialect:
    """SQL dialect of a store for comparisons with the value of a field, a row of ``fields``.

    ``words`` and ``number`` are the columns of texts and numbers; ``match`` is the pattern
    operator, and ``pattern`` translates patterns for it; ``clean`` converts a text to the form
    stored in the column.
    """

    words: str = "value"
    number: str = "value"
    match: str = "GLOB"
    pattern: Callable[[str], str] = _translate_glob
    clean: Callable[[str], str] = str


SQLITE_DIALECT = SqlDialect()


def parse_filter(text: str) -> FilterExpression:
    """Parse a filter.

    Raises:
        DataError: If the text is not a filter; with the position of the error.
    """
    if len(text) > _MAX_CHARACTERS:
        raise _make_filter_error(text, len(text), f"it has {len(text)} characters")
    parser = _FilterParser(text, list(_tokenize_filter(text)))
    expression = parser.read_or(0)
    if parser.at < len(parser.tokens):
        raise parser.refuse("something follows where it should end")
    return expression


def compile_filter(
    expression: FilterExpression,
    known: Mapping[str, frozenset[FieldKind]],
    prefix: str,
    dialect: SqlDialect = SQLITE_DIALECT,
) -> SqlCondition:
    """Return the SQL condition of a filter, with its values bound.

    ``known`` has the fields of the index with the types of their values. ``prefix`` is that of the
    parameters' names, different for filters that are joined.

    Raises:
        DataError: If a field is unknown, or compared with a value of another type.
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

    sql = compile_node(expression)
    return SqlCondition(sql, tuple(values))


def _compile_comparison(node: FilterExpression, bind: Any, dialect: SqlDialect) -> str:
    """Return the rest of a comparison's condition; the operator is one of a fixed set."""
    if node.operator == "exists":
        return ""
    if node.operator == "~":
        pattern = bind(dialect.pattern(str(node.values[0])))
        return f" AND kind IN ('text', 'date') AND {dialect.words} {dialect.match} {pattern}"
    tests = []
    operator = "=" if node.operator == "in" else node.operator
    for value in node.values:
        comparable = _COMPARABLE_KINDS[_infer_kind(value)]
        column = dialect.words if "text" in comparable else dialect.number
        kinds = ", ".join(f"'{kind}'" for kind in comparable)
        tests.append(f"(kind IN ({kinds}) AND {column} {operator} {bind(value)})")
    return f" AND ({' OR '.join(tests) or '1 = 0'})"


def list_mixed_comparisons(
    expression: FilterExpression, known: Mapping[str, frozenset[FieldKind]]
) -> list[str]:
    """Return a warning for each field with values of a type that no comparison is of.

    ``known`` has the fields of the index with the types of their values.
    """
    compared: dict[str, set[FieldKind]] = {}
    parts = [expression]
    for node in parts:
        parts += node.parts
        for value in node.values:
            compared.setdefault(node.field, set()).update(_list_comparable(node.operator, value))
    return [
        f"{name} is {' or '.join(sorted(others))} in some documents: the filter compares it where "
        f"it is {' or '.join(sorted(known[name] & kinds))}"
        for name, kinds in compared.items()
        if (others := known.get(name, frozenset()) - kinds)
    ]


def _list_comparable(operator: Operator, value: Any) -> tuple[FieldKind, ...]:
    """Return the types of values that a comparison can match."""
    return ("text", "date") if operator == "~" else _COMPARABLE_KINDS[_infer_kind(value)]


def make_unknown_field_error(name: str, known: Iterable[str]) -> DataError:
    """Return an error for a field that no document has."""
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
        if isinstance(value, _NoDay) and node.operator != "~" and "date" in kinds:
            raise DataError(
                f"{node.field} is compared with {value}, and there is no such day",
                code="rag.bad-filter",
                expected="a day that the calendar has",
                next="correct the date, or quote what is no date",
            )
        if not kinds & set(_list_comparable(node.operator, value)):
            raise DataError(
                f"{node.field} holds {' or '.join(sorted(kinds))}, and is compared with "
                f"{value!r:.80}, which is {_infer_kind(value)}",
                code="rag.filter-kind",
                expected=f"a value of the field's type: {', '.join(sorted(kinds))}",
                next='write texts in quotes ("2024"), numbers without, dates as 2024-05-31',
            )


def _tokenize_filter(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield kind (mark, text or word), value and position of every token."""
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise _make_filter_error(text, position, "it cannot be read")
        start = match.start(match.lastgroup or 0)
        if match.lastgroup in {"double", "single"}:
            yield "text", re.sub(r"\\(.)", r"\1", match.group(match.lastgroup)), start
        else:
            yield str(match.lastgroup), match.group(match.lastgroup or 0), start
        position = match.end()


class _FilterParser:
    """Recursive descent parser with limits on depth and number of comparisons."""

    def __init__(self, text: str, tokens: Sequence[tuple[str, str, int]]) -> None:
        self.text, self.tokens, self.at, self.count = text, tokens, 0, 0

    def read_or(self, depth: int) -> FilterExpression:
        if depth > _MAX_DEPTH:
            raise self.refuse(f"it is nested more than {_MAX_DEPTH} times")
        return self._read_many("or", self._read_and, depth)

    def refuse(self, problem: str) -> DataError:
        position = self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.text)
        return _make_filter_error(self.text, position, problem)

    def _read_many(
        self, word: Literal["and", "or"], read_part: Any, depth: int
    ) -> FilterExpression:
        parts = [read_part(depth)]
        while self._take_word(word):
            parts.append(read_part(depth))
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
        is_number = kind == "word" and _NUMBER.fullmatch(value) is not None
        if is_number and value.lstrip("+-").isdigit() and abs(float(value)) >= FIRST_INEXACT:
            raise self.refuse(
                "this number is not exact: quote it, and write it as text in metadata"
            )
        self.at += 1
        if kind == "text":
            return value
        if _DATE.fullmatch(value) and not _is_day(value):
            return _NoDay(value)
        if value.lower() in {"true", "false"}:
            return value.lower() == "true"
        return float(value) if is_number else value

    def _next(self, kind: str, label: str) -> str:
        if self.at >= len(self.tokens) or self.tokens[self.at][0] != kind:
            raise self.refuse(f"{label} is missing")
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


def _make_filter_error(text: str, position: int, problem: str) -> DataError:
    return DataError(
        f"the filter cannot be parsed: {problem}",
        code="rag.bad-filter",
        where=f"character {position + 1}: {text[:position][-30:]}⟨{text[position:][:30]}⟩",
        expected='comparisons as year >= 2020, language = en, path ~ "docs/*", tag in (a, b)',
        next="join them by and, or, not; write texts with spaces in quotes",
    )
