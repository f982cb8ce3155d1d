r"""The final answer of a worked solution, and whether two of them are the same.

Knows the marks that people and models put before an answer (``The answer is``, ``####``,
``\boxed{}``), and what a sentence that states one ends in; what it does not find it does not guess.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

from stillroom.text.normalize import exact_match

__all__ = [
    "Find",
    "answer_key",
    "changes_number",
    "find_answer",
    "is_marked",
    "read_answers",
    "same_answer",
]

Find = Literal["marked", "number", "whole"]

_MARK = re.compile(
    r"(?:(?<!wrong )(?<!incorrect )\banswer\s*(?:is|:|=)|####)[ \t:]*", re.IGNORECASE
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{|\\boxed\s+(?=[^\s{])")
_NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?%?")
_FRINGE = " \t*_`\"'$"
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\\,|\\!|[ \u2009\u202f])(?=\d{3}(?!\d))")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,(?!\d{3}$)(\d+)")
_MIXED = re.compile(r"([-+]?)(\d+) (\d+)/(\d+)")
_PLAIN = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3}|\s*/\s*\d+)?")
_EXACT = re.compile(r"\d|[()\[\]{}]")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_ARTICLES = frozenset({"a", "an", "the"})
_WORDED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_DISPLAY = re.compile(r"\$\$.{0,400}?\$\$|\\\[.{0,400}?\\\]", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_]|[$\\<])")
_MATHS = re.compile(
    r"\$\$(.{1,400}?)\$\$|\$([^$]{1,400})\$|\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]"
)
_COPULA = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|becomes)\b|:(?=\s))\s*"
    r"(?:(?:exactly|precisely|simply|just|equal to|about|approximately|roughly)\s+)?"
)
_DENIAL = re.compile(
    r"\b(?:not?|never|none|neither|nor|cannot|wrong|incorrect|false|fails?|failed|instead|except|"
    r"unlike|unless|impossible|contradict\w*|undefined|mistaken\w*)\b|n['\u2019]t\b|\?\s*$",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"((?:[A-Za-z][A-Za-z'-]*,?\s+)*)([$\u20ac\u00a3]?\s*[-+\u2212]?\d[\d,]*(?:\.\d+)?(?:/\d+)?\s*%?)"
    r"(?:\s+[$\u20ac\u00a3])?((?:[\s,]+[A-Za-z][A-Za-z'-]+)*)[\s.,;!]*"
)
_LEADS = re.compile(  # what may stand before a number that a mark sets off, and leaves it as it is
    r"(?:(?:exactly|precisely|simply|just|only|about|approximately|roughly|an?|the|total|of)\b,?\s*)*",
    re.IGNORECASE,
)
_CHANGES = re.compile(  # what a number is not alone before; words of one letter are variables
    r"\b(?:more|less|fewer|greater|higher|lower|times|percent|hundreds?|thousands?|[mbtr]+illions?|"
    r"dozens?|tens|score|gross|doubled|tripled|quadrupled|halved|negated|half|halves|thirds?|quarters?|fourths?|fifths?|squared|cubed|factorial|plus|minus|"
    r"modulo|mod|to|or|and|if|when|base|pi|roots?|sqrt|point|but|"
    r"though|although|however|than|divided|multiplied|power|least|"
    r"most|between|above|below|under|over|within|almost|nearly|per(?=\s+cent)|cents?)\b",
    re.IGNORECASE,
)
_LIST = re.compile(
    r"(?:\s|[$,;]|\\[()\[\],; ]|\\q?quad|\\text\s*\{[\s,]*(?:and|or)?[\s,]*\}|"
    r"\b(?:and|or|also)\b|[A-Za-z]_?\{?\d*\}?\s*=)*"
)
_FINAL = re.compile(  # a heading is none, though it may number a step
    r"\bfinal\s+answer\s*(?:is|:|=)[^\n\d$\\]{0,200}[\d$\\]|"
    r"^####[ \t]*\$?[-+\u2212]?[\d.,/]+%?\$?[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_COMMANDS = re.compile(r"\\[a-z]+")
_LONGEST_JOIN = 60
_MOST_BOXES = 32
_JOINS = re.compile(r"\b(?:and|or)\b|,|;")
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
    return _last_boxed(text) or _unwrap(_statement(text)[0])


def read_answers(text: str, find: Find = "marked") -> list[str]:
    """Return what the final answer of a text may be read as, as it stands first.

    A statement in words is also read as what it ends in ("the largest n is 34.", "so $x < 3$.",
    "12 apples"), unless it denies something. Of several statements one alone is read.
    """
    found = find_answer(text, find)
    if not found or find != "marked" or _last_boxed(text):
        return [found] if found else []
    line, is_first = _statement(text)
    sentences = [one for one in _SENTENCE.split(line) if re.search(r"\d|\$|\\", one)] or [line]
    sentence = sentences[0 if is_first else -1]
    read = [found, _unwrap(sentence)]
    if not _DENIAL.search(sentence):
        copulas = list(_COPULA.finditer(sentence))
        told = sentence[copulas[-1].end() :] if copulas else sentence
        spans = list(_MATHS.finditer(sentence))
        if copulas:
            read.append(_unwrap(told))
        if len(spans) == 1 and not re.search(r"\d", _MATHS.sub("", sentence)):
            read.append(next(filter(None, spans[0].groups())))
        read.append(_counted(told.strip(), is_first))
    return [one for one in dict.fromkeys(map(str.strip, read)) if one]


def _counted(told: str, is_marked: bool) -> str:
    """Return the one number among words that do not change it, which a mark may set off."""
    found = _COUNTED.fullmatch(told)
    if found is None or changes_number(found[3]):
        return ""
    if found[1] and not (is_marked and _LEADS.fullmatch(found[1])):
        return ""
    return found[2].lstrip("$\u20ac\u00a3 ")


def changes_number(words: str) -> bool:
    """Return whether words after a number make it another one, or deny it; a unit does not."""
    return bool(_CHANGES.search(words) or _DENIAL.search(words))


def _statement(text: str) -> tuple[str, bool]:
    """Return the line that states the answer, and whether a mark says where it begins."""
    text = _DISPLAY.sub(
        lambda found: " ".join(found[0].split()), text.split("<|")[0].replace('\\"', '"')
    )
    marks = list(_MARK.finditer(text))
    lines = text[marks[-1].end() :].strip().splitlines() if marks else text.strip().splitlines()
    return (lines[0 if marks else -1], bool(marks)) if lines else ("", bool(marks))


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
    """Return whether two answers are equal: as numbers where both are numbers, else in words.

    A decimal comma is taken for one where the other answer has a point and the same digits. In the
    second, which may be known to be right, ``2,5`` stays two numbers.
    """
    one, other = _without_font(one), _without_font(other)
    if _has_comma_for_point(one, other, 1) or _has_comma_for_point(other, one, 2):
        return True
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


def _has_comma_for_point(one: str, other: str, places: int) -> bool:
    found = _DECIMAL_COMMA.fullmatch(_unwrap(one).replace("{,}", ","))
    if found is None or len(found[1]) < places:
        return False
    return found[0].replace(",", ".") == _unwrap(other)


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
    """Return what stands in the last box, or in the list of boxes that it ends."""
    starts = list(_BOXED.finditer(text))[-_MOST_BOXES:]
    boxes = [one for start in starts if (one := _boxed_at(text, start))]
    if not boxes or _BOXED.search(text, boxes[-1][1]):
        return ""  # the last one is never closed
    if _FINAL.search(text, boxes[-1][1]):
        return ""  # a step was boxed, and the answer told after it
    held = [boxes[-1][2]]
    for left, right in zip(reversed(boxes[:-1]), reversed(boxes), strict=False):
        if not _is_list(text[left[1] : right[0]]):
            break
        held.insert(0, left[2])
    return ", ".join(dict.fromkeys(held))


def _is_list(between: str) -> bool:
    """Return whether what stands between two boxes makes them items of one answer."""
    if len(between) > _LONGEST_JOIN or not _LIST.fullmatch(between):
        return False
    return bool(_JOINS.search(between)) or not re.search(r"\w|\n", _COMMANDS.sub("", between))


def _boxed_at(text: str, start: re.Match[str]) -> tuple[int, int, str] | None:
    at = start.end()
    if text[at - 1] != "{":  # \boxed 5, as some write it
        word = text[at:].split()[0]
        return start.start(), at + len(word), word.strip(_FRINGE).removesuffix(".")
    depth = 1
    for end in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return start.start(), end + 1, text[at:end].strip()
    return None


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
