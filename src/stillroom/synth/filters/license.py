"""License: allowed SPDX licenses only, with required attribution.

Own method, over the SPDX expressions that origins carry: what is joined by ``AND`` must all be
allowed, of what is joined by ``OR`` one is enough. A license that nobody has told is what the
setting says it is, never silently allowed. Licenses that ask for attribution leave it in the
record's field ``attribution``. The terms of the teachers are for the report (``synth.terms``).

Reads ``AND``, ``OR``, ``WITH`` and parentheses; knows a few dozen ids by what they ask, no law.

Source: SPDX specification 2.3, annex D (license expressions).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.records import Passage, Record
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, FilterState
from stillroom.synth.prompting.conversation import get_evidence_passage

__all__ = [
    "License",
    "allowed_terms",
    "requires_attribution",
]


_OPEN = (
    "CC0-1.0",
    "CC-BY-4.0",
    "CC-BY-3.0",
    "CC-BY-SA-4.0",
    "CC-BY-SA-3.0",
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "PSF-2.0",
    "ODC-By-1.0",
    "PDDL-1.0",
    "Unlicense",
)


class License(Filter):
    """Drops records whose license is not allowed, or that nobody has told."""

    paper: ClassVar[str] = ""
    judges_passages: ClassVar[bool] = True

    allow: tuple[str, ...] = Field(
        _OPEN, min_length=1, description="SPDX ids; a name that ends in * allows what begins so"
    )
    unknown: Literal["drop", "keep"] = Field(
        "drop", description="what becomes of records whose license nobody has told"
    )
    attribute: bool = Field(True, description="leave the attribution that a license asks for")

    @override
    def judge(self, record: Record) -> FilterResult:
        return self._judge(record, None)

    @override
    def begin(self, context: FilterContext) -> FilterState:
        return _LicenseState(self, context)

    def _judge(self, record: Record, passage: Passage | None) -> FilterResult:
        told = record.origin.license or (passage.origin.license if passage is not None else "")
        if not told:
            if self.unknown == "drop":
                return FilterResult(False, "nobody tells its license", 0.0)
            return FilterResult(True)
        terms = allowed_terms(told, self.allow)
        if terms is None:
            return FilterResult(False, "license not allowed", 0.0, told={"license": told})
        owed = [term for term in terms if requires_attribution(term)]
        if not self.attribute or not owed or "attribution" in record.fields:
            return FilterResult(True)
        fields = {**record.fields, "attribution": _attribute(record, passage, terms)}
        return FilterResult(True, told={"license": told}, changed=replace(record, fields=fields))


class _LicenseState:
    def __init__(self, chosen: License, context: FilterContext) -> None:
        self._chosen, self._context = chosen, context

    def judge(self, record: Record) -> FilterResult:
        return self._chosen._judge(record, get_evidence_passage(record, self._context))

    def admit(self, record: Record) -> None:
        """Remember nothing: a license does not depend on what was kept."""


def _attribute(record: Record, passage: Passage | None, terms: tuple[str, ...]) -> str:
    """Return a line that names the source, its place and the license."""
    parts = []
    if passage is not None:
        parts += [passage.title, passage.location.path]
    else:
        parts.append(str(record.fields.get("document_id", "")))
    source = ", ".join(dict.fromkeys(part for part in parts if part)) or "source not told"
    return f"{source}; license: {' AND '.join(terms)}"


_TOKEN = re.compile(r"\(|\)|[^\s()]+")
_NO_ATTRIBUTION = ("CC0-", "Unlicense", "PDDL-", "0BSD", "MIT-0", "WTFPL", "Public-Domain")
"""Ids that ask for nothing; every other license asks at least for its notice to be kept."""


def allowed_terms(expression: str, allow: Sequence[str]) -> tuple[str, ...] | None:
    """Return the terms to be kept to, or None where the expression is not allowed.

    Args:
        expression: As ``(MIT OR Apache-2.0) AND CC-BY-4.0``; what cannot be read is one term.
        allow: Ids; one that ends in ``*`` allows all that begin so.
    """
    tokens = _TOKEN.findall(expression)
    try:
        found, at = _read_or(tokens, 0, allow)
    except IndexError:
        return (expression,) if _is_allowed(expression, allow) else None
    if at != len(tokens):
        return (expression,) if _is_allowed(expression, allow) else None
    return tuple(dict.fromkeys(found)) if found is not None else None


def requires_attribution(term: str) -> bool:
    """Return whether a license asks that its source or notice be named."""
    return not term.startswith(_NO_ATTRIBUTION)


def _read_or(tokens: Sequence[str], at: int, allow: Sequence[str]) -> tuple[list[str] | None, int]:
    found, at = _read_and(tokens, at, allow)
    while at < len(tokens) and tokens[at].upper() == "OR":
        other, at = _read_and(tokens, at + 1, allow)
        found = found if found is not None else other
    return found, at


def _read_and(tokens: Sequence[str], at: int, allow: Sequence[str]) -> tuple[list[str] | None, int]:
    found, at = _read_term(tokens, at, allow)
    while at < len(tokens) and tokens[at].upper() == "AND":
        other, at = _read_term(tokens, at + 1, allow)
        found = [*found, *other] if found is not None and other is not None else None
    return found, at


def _read_term(
    tokens: Sequence[str], at: int, allow: Sequence[str]
) -> tuple[list[str] | None, int]:
    if tokens[at] == "(":
        found, at = _read_or(tokens, at + 1, allow)
        if tokens[at] != ")":
            raise IndexError
        return found, at + 1
    term = tokens[at]
    at += 1
    if at + 1 < len(tokens) and tokens[at].upper() == "WITH":
        term = f"{term} WITH {tokens[at + 1]}"
        at += 2
    return ([term] if _is_allowed(term, allow) else None), at


def _is_allowed(term: str, allow: Sequence[str]) -> bool:
    plain = term.split(" WITH ")[0].casefold().removesuffix("+")
    return any(
        plain.startswith(name[:-1].casefold()) if name.endswith("*") else plain == name.casefold()
        for name in allow
    )
