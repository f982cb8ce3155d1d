"""Licenses as SPDX expressions: which of their terms are allowed, and which ask to be named.

Reads ``AND``, ``OR``, ``WITH`` and parentheses; knows a few dozen ids by what they ask, no law.

Source: SPDX specification 2.3, annex D (license expressions).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["allowed_terms", "owes_attribution"]

_TOKEN = re.compile(r"\(|\)|[^\s()]+")
_FREE = ("CC0-", "Unlicense", "PDDL-", "0BSD", "MIT-0", "WTFPL", "Public-Domain")
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


def owes_attribution(term: str) -> bool:
    """Return whether a license asks that its source or notice be named."""
    return not term.startswith(_FREE)


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
