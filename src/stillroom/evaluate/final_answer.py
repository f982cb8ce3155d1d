r"""The final answer of a worked solution, and whether two of them are the same.

Knows the marks that people and models put before an answer (``The answer is``, ``####``,
``\boxed{}``); what it does not find it does not guess.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

from stillroom.text.normalize import exact_match

__all__ = ["Find", "find_answer", "same_answer"]

Find = Literal["marked", "number", "whole"]

_MARK = re.compile(r"(?:\banswer\s*(?:is|:|=)|####)[ \t:]*", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{")
_NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?%?")
_FRINGE = " \t*_`\"'$."
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_OPERATOR = re.compile(r"[\\^=<>+*/]|(?:\b[a-zA-Z]|\d|^)\s*[-−]\s*(?:[a-zA-Z]\b|\d)")


def find_answer(text: str, find: Find = "marked") -> str:
    """Return the final answer of a text, or an empty string where there is none.

    Args:
        text: A worked solution, or a bare answer.
        find: Where it stands: ``marked`` after the last "answer is" or in a box, ``number`` the
            last number, ``whole`` all of it.
    """
    if find == "whole":
        return text.strip()
    if find == "number":
        numbers = _NUMBER.findall(text)
        return numbers[-1].strip() if numbers else ""
    boxed = _last_boxed(text)
    if boxed:
        return boxed
    marks = list(_MARK.finditer(text))
    lines = text[marks[-1].end() :].strip().splitlines() if marks else text.strip().splitlines()
    if not lines:
        return ""
    return _unwrap(lines[0 if marks else -1])


def same_answer(one: str, other: str) -> bool:
    """Return whether two answers are equal: as numbers where both are numbers, else in words."""
    numbers = _as_number(one), _as_number(other)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1]
    if not one.strip() or not other.strip():
        return False
    if _OPERATOR.search(one) or _OPERATOR.search(other):  # in words x+1 and x-1 are the same
        return "".join(one.split()) == "".join(other.split())
    return bool(exact_match(one, other))


def _as_number(text: str) -> Fraction | None:
    bare = _unwrap(text).strip("%").replace("−", "-").replace(",", "").replace(" ", "")
    try:
        return Fraction(bare)
    except (ValueError, ZeroDivisionError):
        return None


def _last_boxed(text: str) -> str:
    starts = [match.end() for match in _BOXED.finditer(text)]
    if not starts:
        return ""
    depth = 1
    for at in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[starts[-1] : at].strip()
    return ""


def _unwrap(text: str) -> str:
    """Return a text without marks around it, and without a pair of brackets around one thing."""
    bare = text.strip(_FRINGE)
    while (
        len(bare) > 1 and _PAIRS.get(bare[0]) == bare[-1] and not set(bare[1:-1]) & set("()[]{},")
    ):
        bare = bare[1:-1].strip(_FRINGE)
    return bare
