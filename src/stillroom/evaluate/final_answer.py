r"""The final answer of a worked solution, and whether two of them are the same.

Knows the marks that people and models put before an answer (``The answer is``, ``####``,
``\boxed{}``); what it does not find it does not guess.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

from stillroom.text.normalize import exact_match

__all__ = ["Find", "answer_key", "find_answer", "is_marked", "same_answer"]

Find = Literal["marked", "number", "whole"]

_MARK = re.compile(r"(?:\banswer\s*(?:is|:|=)|####)[ \t:]*", re.IGNORECASE)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{|\\boxed\s+(?=[^\s{])")
_NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?%?")
_FRINGE = " \t*_`\"'$"
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\\,|\\!|[ \u2009\u202f])(?=\d{3}(?!\d))")
_MIXED = re.compile(r"([-+]?)(\d+) (\d+)/(\d+)")
_PLAIN = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3}|\s*/\s*\d+)?")
_EXACT = re.compile(r"\d|[()\[\]{}]")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_ARTICLES = frozenset({"a", "an", "the"})
_WORDED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
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


def is_marked(text: str) -> bool:
    """Return whether a text says which part of it is the answer."""
    return bool(_BOXED.search(text) or _MARK.search(text))


def answer_key(answer: str) -> str:
    """Return what equal answers have in common: the number that it is, else its words and marks."""
    bare = _without_font(answer)
    number = _as_number(bare)
    if number is not None:
        return str(number)
    return " ".join(_tokens(bare.rstrip("!?;,:. ") if re.search("[^\\W\\d_]", bare) else bare))


def same_answer(one: str, other: str) -> bool:
    """Return whether two answers are equal: as numbers where both are numbers, else in words."""
    one, other = _without_font(one), _without_font(other)
    numbers = _as_number(one), _as_number(other)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1]
    if not one.strip() or not other.strip():
        return False
    if _OPERATOR.search(one) or _OPERATOR.search(other):  # in words x+1 and x-1 are the same
        return "".join(one.split()) == "".join(other.split())
    if any(_EXACT.search(text) for text in (one, other)):  # (1,2) is neither [1,2] nor 12
        return _tokens(one) == _tokens(other)
    return bool(exact_match(one, other))


def _as_number(text: str) -> Fraction | None:
    """Return the number that a text is; its commas may set off thousands and nothing else."""
    bare = _THOUSANDS.sub("", _unwrap(text).strip("%").strip().replace("−", "-"))
    mixed = _MIXED.fullmatch(bare)
    if mixed is None and not _PLAIN.fullmatch(bare):
        return None
    try:
        if mixed is not None:
            sign, whole, top, bottom = mixed.groups()
            value = int(whole) + Fraction(int(top), int(bottom))
            return -value if sign == "-" else value
        return Fraction("".join(bare.split()))
    except (ValueError, ZeroDivisionError):
        return None


def _without_font(text: str) -> str:
    r"""Return what stands in ``\text{...}`` where that is all there is."""
    found = _WORDED.fullmatch(text.strip().strip("$ "))
    return found[1] if found else text


def _tokens(text: str) -> list[str]:
    """Return the words and marks of an answer, without articles and what stands around it."""
    bare = _THOUSANDS.sub("", _unwrap(text)).casefold()
    return [token for token in _TOKEN.findall(bare) if token not in _ARTICLES]


def _last_boxed(text: str) -> str:
    starts = [match.end() for match in _BOXED.finditer(text)]
    if not starts:
        return ""
    if text[starts[-1] - 1] != "{":  # \boxed 5, as some write it
        return text[starts[-1] :].split()[0].strip(_FRINGE).removesuffix(".")
    depth = 1
    for at in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[starts[-1] : at].strip()
    return ""


def _unwrap(text: str) -> str:
    """Return a text without marks around it, and without a pair of brackets around one thing."""
    bare = _trim(text)
    while (
        len(bare) > 1 and _PAIRS.get(bare[0]) == bare[-1] and not set(bare[1:-1]) & set("()[]{},")
    ):
        bare = _trim(bare[1:-1])
    return bare


def _trim(text: str) -> str:
    """Return a text without marks around it; the point that begins .5 is none."""
    bare = text.strip(_FRINGE)
    while bare.endswith("."):
        bare = bare[:-1].rstrip(_FRINGE)
    return bare if re.match(r"\.\d", bare) else bare.lstrip(_FRINGE + ".")
