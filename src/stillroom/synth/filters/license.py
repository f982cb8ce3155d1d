"""License: allowed SPDX licenses only, with required attribution.

Own method, on the SPDX expressions that origins carry: of licenses joined by ``AND`` all must be
allowed, of those joined by ``OR`` one. A missing license is treated as the setting ``unknown``
directs, never silently allowed. The attribution that a license requires is stored in the record's
field ``attribution``. The terms of the teacher models are reported separately
(``stillroom.synth.output.model_terms.find_model_terms``).

Parses ``AND``, ``OR``, ``WITH`` and parentheses; knows the requirements of a few dozen ids. This is
not legal advice.

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
from stillroom.synth.interfaces import BoundFilter, Filter, FilterContext, FilterResult
from stillroom.synth.prompting.conversation import get_evidence_passage

__all__ = ["License", "allowed_terms", "requires_attribution"]

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
    """Drop records whose license is not allowed or not known."""

    paper: ClassVar[str] = ""
    accepts_passages: ClassVar[bool] = True

    allow: tuple[str, ...] = Field(
        _OPEN,
        min_length=1,
        description="SPDX ids; a name that ends in * allows every id with that prefix",
    )
    unknown: Literal["drop", "keep"] = Field(
        "drop", description="how to treat records without a license"
    )
    attribute: bool = Field(True, description="add the attribution that a license requires")

    @override
    def judge(self, record: Record) -> FilterResult:
        return self._judge(record, None)

    @override
    def start(self, context: FilterContext) -> BoundFilter:
        return BoundFilter(
            lambda record: self._judge(record, get_evidence_passage(record, context))
        )

    def _judge(self, record: Record, passage: Passage | None) -> FilterResult:
        license_id = record.origin.license or (
            passage.origin.license if passage is not None else ""
        )
        if not license_id:
            if self.unknown == "drop":
                return FilterResult(False, "nobody tells its license", 0.0)
            return FilterResult(True)
        terms = allowed_terms(license_id, self.allow)
        if terms is None:
            return FilterResult(False, f"license {license_id:.40} not allowed", 0.0)
        attributed = [term for term in terms if requires_attribution(term)]
        if not self.attribute or not attributed or "attribution" in record.fields:
            return FilterResult(True)
        fields = {**record.fields, "attribution": _attribute(record, passage, terms)}
        return FilterResult(
            True, details={"license": license_id}, changed=replace(record, fields=fields)
        )


def _attribute(record: Record, passage: Passage | None, terms: tuple[str, ...]) -> str:
    """Return a line with the source, its path and the license."""
    parts = []
    if passage is not None:
        parts += [passage.title, passage.location.path]
    else:
        parts.append(str(record.fields.get("document_id", "")))
    source = ", ".join(dict.fromkeys(part for part in parts if part)) or "source not told"
    return f"{source}; license: {' AND '.join(terms)}"


_TOKEN = re.compile(r"\(|\)|[^\s()]+")
_NO_ATTRIBUTION = ("CC0-", "Unlicense", "PDDL-", "0BSD", "MIT-0", "WTFPL", "Public-Domain")
"""Licenses without conditions; every other license requires at least that its notice is kept."""


def allowed_terms(expression: str, allow: Sequence[str]) -> tuple[str, ...] | None:
    """Return the license terms to comply with, or None if the expression is not allowed.

    Args:
        expression: Such as ``(MIT OR Apache-2.0) AND CC-BY-4.0``; one that cannot be parsed is
            taken as one term, which only an equal name in ``allow``, or ``*``, allows.
        allow: License ids; one that ends in ``*`` allows every id with that prefix.
    """
    tokens = _TOKEN.findall(expression)
    try:
        accepted, position = _read_or(tokens, 0, allow)
    except (IndexError, RecursionError):
        accepted, position = None, -1
    if position != len(tokens):
        is_named = {"*", expression.casefold()} & {name.casefold() for name in allow}
        accepted = [expression] if is_named else None
    return tuple(dict.fromkeys(accepted)) if accepted is not None else None


def requires_attribution(term: str) -> bool:
    """Return whether a license requires that its source or notice is named."""
    return not term.startswith(_NO_ATTRIBUTION)


def _read_or(
    tokens: Sequence[str], position: int, allow: Sequence[str]
) -> tuple[list[str] | None, int]:
    accepted, position = _read_and(tokens, position, allow)
    while position < len(tokens) and tokens[position].upper() == "OR":
        alternative, position = _read_and(tokens, position + 1, allow)
        accepted = accepted if accepted is not None else alternative
    return accepted, position


def _read_and(
    tokens: Sequence[str], position: int, allow: Sequence[str]
) -> tuple[list[str] | None, int]:
    accepted, position = _read_term(tokens, position, allow)
    while position < len(tokens) and tokens[position].upper() == "AND":
        more, position = _read_term(tokens, position + 1, allow)
        accepted = [*accepted, *more] if accepted is not None and more is not None else None
    return accepted, position


def _read_term(
    tokens: Sequence[str], position: int, allow: Sequence[str]
) -> tuple[list[str] | None, int]:
    if tokens[position] == "(":
        accepted, position = _read_or(tokens, position + 1, allow)
        if tokens[position] != ")":
            raise IndexError
        return accepted, position + 1
    term = tokens[position]
    position += 1
    if position + 1 < len(tokens) and tokens[position].upper() == "WITH":
        term = f"{term} WITH {tokens[position + 1]}"
        position += 2
    return ([term] if _is_allowed(term, allow) else None), position


def _is_allowed(term: str, allow: Sequence[str]) -> bool:
    plain = term.split(" WITH ")[0].casefold().removesuffix("+")
    return any(
        plain.startswith(name[:-1].casefold()) if name.endswith("*") else plain == name.casefold()
        for name in allow
    )
