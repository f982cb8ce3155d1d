"""Filters: which documents a search may find, by their fields.

Written as text for people: ``year >= 2020 and language = en and not path ~ "drafts/*"``. Text never
becomes part of a statement: it is read into a tree here, names are held against the fields that the
index has, kinds against theirs, and values are bound.

``=`` holds where any value of the field equals, ``!=`` where none does (so also where the field is
missing); ``<``, ``<=``, ``>``, ``>=`` compare numbers, dates or texts; ``~`` matches a pattern of
``*`` and ``?``; ``in (a, b)``; ``exists(author)``; ``and``, ``or``, ``not`` and parentheses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stillroom.errors import DataError
from stillroom.rag.store.fields import Kind, name_kind

__all__ = [
    "SQLITE",
    "Condition",
    "Dialect",
    "Filter",
    "compile_filter",
    "parse_filter",
    "unknown_field",
]

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "~", "in", "exists", "and", "or", "not"]
_TOKEN = re.compile(
    r"\s*(?:(?P<mark><=|>=|!=|[=<>~(),])"
    r'|"(?P<double>(?:[^"\\]|\\.)*)"'
    r"|'(?P<single>(?:[^'\\]|\\.)*)'"
    r"|(?P<word>[^\s()=<>!~,\"']+))"
)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_MOST_CHARACTERS = 8_192
_MOST_TERMS = 256
_DEEPEST = 32
_ALIKE: Mapping[Kind, tuple[Kind, ...]] = {
    "text": ("text", "date"),
    "date": ("date", "text"),
    "number": ("number",),
    "bool": ("bool",),
}


@dataclass(frozen=True, slots=True)
class Filter:
    """One node: a comparison of a field with values, or an operator over other nodes."""

    operator: Operator
    field: str = ""
    values: tuple[Any, ...] = ()
    parts: tuple[Filter, ...] = ()

    def __and__(self, other: Filter) -> Filter:
        """Return the filter that both meet."""
        return Filter("and", parts=(self, other))


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on ``d``, a row of documents, and what its names stand for."""

    sql: str = "1 = 1"
    values: tuple[tuple[str, Any], ...] = ()

    def join(self, other: Condition) -> Condition:
        """Return the condition that both meet."""
        return Condition(f"({self.sql}) AND ({other.sql})", (*self.values, *other.values))


def _glob(pattern: str) -> str:
    """Return a pattern in which only * and ? mean something."""
    return pattern.replace("[", "[[]")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a store's statements compare the value of a field, a row of ``fields``.

    ``words`` and ``number`` are the columns that hold texts and numbers; ``match`` is the operator
    of patterns and ``pattern`` what makes its pattern of ours; ``clean`` makes of a text what the
    column holds of it.
    """

    words: str = "value"
    number: str = "value"
    match: str = "GLOB"
    pattern: Callable[[str], str] = _glob
    clean: Callable[[str], str] = str


SQLITE = Dialect()


def parse_filter(text: str) -> Filter:
    """Read a filter from text.

    Raises:
        DataError: If it is no filter; the place is named.
    """
    if len(text) > _MOST_CHARACTERS:
        raise _refuse(text, len(text), f"it has {len(text)} characters")
    reader = _Reader(text, list(_tokens(text)))
    found = reader.read_or(0)
    if reader.at < len(reader.tokens):
        raise reader.refuse("something follows where it should end")
    return found


def compile_filter(
    wanted: Filter,
    known: Mapping[str, frozenset[Kind]],
    prefix: str,
    dialect: Dialect = SQLITE,
) -> Condition:
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

    def compile_node(node: Filter) -> str:
        if node.operator in {"and", "or"}:
            inner = [f"({compile_node(part)})" for part in node.parts]
            return f" {node.operator.upper()} ".join(inner) or "1 = 1"
        if node.operator == "not":
            return f"NOT ({compile_node(node.parts[0])})"
        if node.operator == "!=":
            return f"NOT ({compile_node(Filter('=', node.field, node.values))})"
        _check_field(node, known)
        test = f"name = {bind(node.field)}{_test(node, bind, dialect)}"
        return f"d.key IN (SELECT document FROM fields WHERE {test})"  # noqa: S608

    sql = compile_node(wanted)
    return Condition(sql, tuple(values))


def _test(node: Filter, bind: Any, dialect: Dialect) -> str:
    """Return the rest of a comparison's condition; the operator is one of ours."""
    if node.operator == "exists":
        return ""
    if node.operator == "~":
        pattern = bind(dialect.pattern(str(node.values[0])))
        return f" AND kind IN ('text', 'date') AND {dialect.words} {dialect.match} {pattern}"
    tests = []
    operator = "=" if node.operator == "in" else node.operator
    for value in node.values:
        alike = _ALIKE[name_kind(value)]
        column = dialect.words if "text" in alike else dialect.number
        kinds = ", ".join(f"'{kind}'" for kind in alike)
        tests.append(f"(kind IN ({kinds}) AND {column} {operator} {bind(value)})")
    return f" AND ({' OR '.join(tests) or '1 = 0'})"


def unknown_field(name: str, known: Iterable[str]) -> DataError:
    """Return the error of a field that no document has."""
    return DataError(
        f"no document has a field {name!r:.80}",
        code="rag.unknown-field",
        expected=f"one of: {', '.join(sorted(known))}",
        next="check the name; fields come from front matter and the recipe's metadata",
    )


def _check_field(node: Filter, known: Mapping[str, frozenset[Kind]]) -> None:
    if node.field not in known:
        raise unknown_field(node.field, known)
    kinds = known[node.field]
    for value in node.values:
        wanted = ("text", "date") if node.operator == "~" else _ALIKE[name_kind(value)]
        if not kinds & set(wanted):
            raise DataError(
                f"{node.field} holds {' or '.join(sorted(kinds))}, and is compared with "
                f"{value!r:.80}, which is {name_kind(value)}",
                code="rag.filter-kind",
                expected=f"a value as the field has them: {', '.join(sorted(kinds))}",
                next='write texts in quotes ("2024"), numbers without, dates as 2024-05-31',
            )


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield kind (mark, text or word), value and place of every token."""
    at = 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if found is None:
            raise _refuse(text, at, "it cannot be read")
        start = found.start(found.lastgroup or 0)
        if found.lastgroup in {"double", "single"}:
            yield "text", re.sub(r"\\(.)", r"\1", found.group(found.lastgroup)), start
        else:
            yield str(found.lastgroup), found.group(found.lastgroup or 0), start
        at = found.end()


class _Reader:
    """Reads tokens by recursive descent, depth and number of comparisons bounded."""

    def __init__(self, text: str, tokens: Sequence[tuple[str, str, int]]) -> None:
        self.text, self.tokens, self.at, self.count = text, tokens, 0, 0

    def read_or(self, depth: int) -> Filter:
        if depth > _DEEPEST:
            raise self.refuse(f"it is nested more than {_DEEPEST} times")
        return self._read_many("or", self._read_and, depth)

    def refuse(self, what: str) -> DataError:
        place = self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.text)
        return _refuse(self.text, place, what)

    def _read_many(self, word: Literal["and", "or"], read: Any, depth: int) -> Filter:
        parts = [read(depth)]
        while self._take_word(word):
            parts.append(read(depth))
        return parts[0] if len(parts) == 1 else Filter(word, parts=tuple(parts))

    def _read_and(self, depth: int) -> Filter:
        return self._read_many("and", self._read_not, depth)

    def _read_not(self, depth: int) -> Filter:
        if self._take_word("not"):
            if depth > _DEEPEST:
                raise self.refuse(f"it is nested more than {_DEEPEST} times")
            return Filter("not", parts=(self._read_not(depth + 1),))
        if self._take_mark("("):
            inner = self.read_or(depth + 1)
            self._expect(")")
            return inner
        return self._read_comparison()

    def _read_comparison(self) -> Filter:
        self.count += 1
        if self.count > _MOST_TERMS:
            raise self.refuse(f"it has more than {_MOST_TERMS} comparisons")
        name = self._next("word", "the name of a field")
        if name.lower() == "exists" and self._take_mark("("):
            field = self._next("word", "the name of a field")
            self._expect(")")
            return Filter("exists", field)
        if self._take_word("in"):
            return Filter("in", name, tuple(self._read_list()))
        for operator in ("<=", ">=", "!=", "=", "<", ">", "~"):
            if self._take_mark(operator):
                return Filter(operator, name, (self._read_value(),))
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


def _refuse(text: str, at: int, what: str) -> DataError:
    return DataError(
        f"the filter cannot be read: {what}",
        code="rag.bad-filter",
        where=f"character {at + 1}: {text[:at][-30:]}⟨{text[at:][:30]}⟩",
        expected='comparisons as year >= 2020, language = en, path ~ "docs/*", tag in (a, b)',
        next="join them by and, or, not; write texts with spaces in quotes",
    )
