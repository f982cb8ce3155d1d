"""Trimming: cutting from a question's end what its evidence does not name, or answers itself.

A small teacher adds tails ("... in Python?", "... converted to a common type?"). Cut at a
preposition or conjunction, the question is often sound; cut before the last of a list ("a, b, or
c") it never is. Lexical; it never adds a word. English.
"""

from __future__ import annotations

import re

from stillroom.synth.openings import Opening, fits_opening
from stillroom.synth.wording import content_stems, share_supported

__all__ = ["trim_question"]

_BOUNDARY = re.compile(
    r",?\s+(?:in|on|at|of|for|to|from|with|within|when|if|while|during|after|before|by|using|and|or|"
    r"as|that|which|where|because|without|between|among|through|inside|into|but)\b",
    re.IGNORECASE,
)
_LISTED = re.compile(r",\s+(?:and|or)\b", re.IGNORECASE)
_STRANDED = re.compile(r"\s*(?:to|into|from|for|by|with|as|of|on|in|at|within|through)\b")
_MIN_WORDS = 4
_MIN_NEW = 2


def trim_question(question: str, opening: Opening, evidence: str) -> str:
    """Return the question's longest beginning that fits, or nothing.

    It fits if it names only what the evidence names, leaves the evidence something to answer, and
    goes on with its opening as ``fits_opening`` asks. The opening stays whole.
    """
    if not question.startswith(opening.text):
        return ""
    body = question.rstrip("?？. ")
    if len(body) < len(opening.text):  # the opening itself ends in such a mark: no question
        return ""
    told = set(content_stems(evidence))
    for part in _beginnings(body, opening):
        asked = set(content_stems(part, frames=False))
        if (
            len(part.split()) >= _MIN_WORDS
            and share_supported(asked, told) == 1.0
            and len(told - asked) >= _MIN_NEW
            and part.count('"') % 2 == 0
            and part.count("(") == part.count(")")
            and fits_opening(opening, part, evidence)
        ):
            return f"{part}?"
    return ""


def _beginnings(body: str, opening: Opening) -> list[str]:
    """Return a question's beginnings, longest first, each at least as long as its opening."""
    least = len(opening.text)
    found = [match.start() for match in _BOUNDARY.finditer(body)]
    ends = {len(body), *(at for at in found if not _is_in_list(body, least, at))}
    stranded = _STRANDED.match(body, least) if opening.strands else None
    if stranded is not None:
        ends.add(stranded.end())
    if body[least : least + 1] in {"", " ", ","}:
        ends.add(least)
    return [body[:end] for end in sorted(ends, reverse=True) if end >= least]


def _is_in_list(body: str, least: int, at: int) -> bool:
    """Return whether the last of a list ("a, b, or c") stands at a place."""
    return "," in body[least:at] and _LISTED.match(body, at) is not None
