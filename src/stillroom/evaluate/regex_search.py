"""Search for a regular expression of a stranger, which may not come to an end by itself."""

from __future__ import annotations

import json
import re

from stillroom.evaluate.sandbox import run_code

__all__ = ["search_pattern"]

_SEARCH = """
import json, re, sys
pattern, text, whole = json.loads(sys.stdin.read())
print(int(bool((re.fullmatch if whole else re.search)(pattern, text))))
"""
_PLAIN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^]\\])*\]|\(\?", re.DOTALL)
"""Escapes, sets, and heads of groups: what they hold is no quantifier."""
_NESTED = re.compile(r"[*+}]\)?[*+{]|\)[*+{]")
_CHOICE = re.compile(r"[*+?|]|\{(?!\d+\})")
"""Places where a match may go on in several ways."""
_STEPS = 10**7


def search_pattern(pattern: str, text: str, *, whole: bool = False) -> bool | None:
    """Return whether a text contains, or is, a match; None if the search does not end in 2 s.

    A pattern without nested quantifiers takes at most as many steps as the text is long, to the
    power of its choices and one. Where that is many, the search runs in the sandbox.

    Raises:
        re.error: If it is not a regular expression.
    """
    plain = _PLAIN.sub("x", pattern)
    choices = len(_CHOICE.findall(plain))
    if not _NESTED.search(plain) and max(len(text), 2) ** min(choices + 1, 30) <= _STEPS:
        compiled = re.compile(pattern)
        return bool((compiled.fullmatch if whole else compiled.search)(text))
    re.compile(pattern)
    outcome = run_code([_SEARCH], stdin=json.dumps([pattern, text, whole]), timeout_s=2.0)
    return outcome.output.strip() == "1" if outcome.is_done else None
