"""Query syntax: what a query says must stand so, beside its words.

``"exact words"`` must stand one after another, as the analyzer cuts them (stemmed where the index
is); ``headings:word`` and ``body:word`` must stand in that field (``title:`` and ``heading:`` are
``headings:``), and ``headings:"exact words"`` both. Everything else is words. There is no text that
cannot be read: a quotation mark without its pair, an unknown field, an empty pair are words, too.

Does not know: AND, OR, NOT and wildcards, which people write without meaning them; the fields of
documents, which a filter names (``stillroom.rag.filters``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.analyzer import Analyzer
    from stillroom.rag.engines.keyword_engine import KeywordEngine
    from stillroom.rag.engines.postings import Field

__all__ = ["Clause", "find_rows", "parse_query"]

_MOST_CLAUSES = 16
_FIELDS: dict[str, Field] = {
    "headings": "headings",
    "heading": "headings",
    "title": "headings",
    "body": "body",
}
_QUOTED = '"([^"]*)"|“([^“”]*)”'
_CLAUSE = re.compile(rf"(?:(?<!\S)(\w+):)?(?:{_QUOTED})|(?<!\S)(\w+):(\S+)")


@dataclass(frozen=True, slots=True)
class Clause:
    """Words that must stand one after another, in one field or in either."""

    text: str
    field: Field | None = None


def parse_query(text: str) -> tuple[str, tuple[Clause, ...]]:
    """Return the words of a query without its syntax, and what must stand so; never raises.

    Args:
        text: Any text. Beyond 16 clauses the rest are words.
    """
    clauses: list[Clause] = []

    def take(match: re.Match[str]) -> str:
        name, straight, curly, word_name, word = match.groups()
        if word is not None:
            name, inner = word_name, word.strip('"“”')
        else:
            inner = straight if straight is not None else curly
        field = _FIELDS.get((name or "").casefold())
        is_known = field is not None or not name
        if not is_known or not inner.strip() or len(clauses) >= _MOST_CLAUSES:
            return match.group()
        clauses.append(Clause(" ".join(inner.split()), field))
        return inner

    plain = _CLAUSE.sub(take, text)
    return (plain, tuple(clauses)) if clauses else (text, ())


def find_rows(
    clauses: tuple[Clause, ...], engine: KeywordEngine, analyzer: Analyzer
) -> NDArray[np.bool_]:
    """Return which of an engine's rows meet all clauses, (P,) bool.

    A clause that the analyzer finds no term in (``"!!!"``) asks for nothing.
    """
    found = np.ones(len(engine), dtype=bool)
    for clause in clauses:
        phrases = analyzer.phrases(clause.text)
        if not phrases:
            continue
        met = np.zeros(len(engine), dtype=bool)
        for field in _fields_of(clause):
            for words in phrases:
                met[engine.phrase(words, field=field)] = True
        found &= met
    return found


def _fields_of(clause: Clause) -> Iterator[Field]:
    yield from ("headings", "body") if clause.field is None else (clause.field,)
