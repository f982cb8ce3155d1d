r"""Answer extraction (``####``, ``\boxed{}``) and equality of numbers and formulas (Math-Verify).

The answer is found by the usual markers of people and models (``The answer is``, ``####``,
``\boxed{}``) and at the end of a sentence that states it; otherwise there is none.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

from stillroom.errors import MissingExtraError, ResourceError
from stillroom.evaluate.notation import (
    align_solution_sets,
    differs_in_symbols,
    find_unit,
    is_same_unit,
    rewrite_notation,
    strip_unit,
)
from stillroom.objects.limited_process import LimitedProcess, limit_seconds, serve_requests
from stillroom.text.unicode import exact_match

__all__ = [
    "ExtractionMode",
    "differs_in_unit",
    "extract_answer",
    "extract_answers",
    "is_answer_marked",
    "is_same_answer",
    "is_same_formula",
    "normalize_answer",
    "serve_comparisons",
]


ExtractionMode = Literal["marked", "number", "whole"]

_MARK = re.compile(
    r"(?:(?<!wrong )(?<!incorrect )\banswer\s*(?:is|:|=)|<answer>|####|"
    r"(?<!falsche )(?<!mauvaise )\b(?:antwort|réponse|respuesta)\s*(?:(?:ist|est|es)\b|:|=)|"
    r"答案\s*(?:[是为為]|:|：))[ \t:]*",
    re.IGNORECASE,
)

_CLAIM = re.compile(
    r"\w+ (?:is|ist|est|es)\s+(?:(?:indeed|also|therefore|thus|then)\s+)?"
    r"(?:correct[ea]?|right|verified|confirmed|consistent|reasonable|korrekt|richtig|bestätigt|"
    r"juste|vérifiée|verificada)\b[^\d$\\\n]*$",
    re.IGNORECASE | re.MULTILINE,
)
"""``The answer is correct.``, which says of the answer before it that it was checked."""

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{|\\boxed\s+(?=[^\s{])")
_NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?%?")
_SURROUNDING_MARKS = ' \t*_`"$\u201c\u201d\u2705\u2713\u2714'  # with check marks
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\\,|\\!|[ \u2009\u202f])(?=\d{3}(?!\d))")
_POINTS = re.compile(r"[-+]?\d{1,3}(?:(?:\.\d{3}){2,}(?:,\d+)?|\.\d{3},\d{1,2})")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,(?!\d{3}$)(\d+)")
_ZERO_COMMA = re.compile(r"^([-+]?0),(?=\d+$)")
_MIXED = re.compile(r"([-+]?)(\d+) (\d+)/(\d+)")
_PLAIN = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3}|\s*/\s*\d+)?")
# As words, |x| and x, n! and n, or f' and f would be equal; "B!" is a choice.
_EXACT = re.compile(
    r"\d|[()\[\]{}|~\u00ac\u2200-\u22ff]|\b(?:[a-zI-Z]!|(?<![\u2018'])[a-zA-Z]['\u2032\u2019])(?!\w)"
)
_TOKEN = re.compile(r"\w+|[^\w\s]")
_ARTICLES = frozenset({"a", "an", "the"})
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_TAGGED = re.compile(r"<answer>((?:(?!</?answer>).)*)", re.DOTALL)
_DISPLAY = re.compile(r"\$\$.{0,400}?\$\$|\\\[.{0,400}?\\\]", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_]|[$\\<])")

_MATH_SPAN = re.compile(
    r"\$\$(.{1,400}?)\$\$|\$([^$]{1,400})\$|\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]"
)

_CHOICE = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*(?:\(([A-J])\)|([A-J])\))\s*[.:]?\s*\}?"
    r"(?:\\ |~|\s)+(\$?-?\d.*|\\(?:d?frac|sqrt|text)\b.*|[A-Za-z]{2,}.*)"
)
"""A choice with its letter: ``(B) 12``, ``\\textbf{(B)}\\ 12``."""

_COPULA = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|becomes|ist|beträgt|est|vaut)\b|:(?=\s))\s*"
    r"(?:(?:therefore|thus|hence|then|exactly|precisely|simply|just|equal to|about|approximately|"
    r"roughly)\s+)?"
)

_NEGATION = re.compile(
    r"\b(?:not?|never|none|neither|nor|cannot|wrong|incorrect|false|fails?|failed|instead|except|"
    r"unlike|unless|impossible|contradict\w*|undefined|mistaken\w*|nicht|kein\w*|falsch\w*|nie|"
    r"niemals|weder|pas|faux|fauss\w*|mauvais\w*|jamais|nunca|tampoco|ningun\w*|incorrect[ao]|falsa|falso|mal)\b|"
    r"n['\u2019]t\b|[不没非错未万亿]|[?？]\s*$",
    re.IGNORECASE,
)

_CONCLUSION = re.compile(
    r"(?:^|[,;:]\s+)(?i:(?:and\s+)?(?:so|thus|hence|therefore|altogether)(?:,?\s+in\s+total)?|"
    r"(?:so\s+)?in\s+total),?\s+"
    r"(?:I|you|he|she|it|we|they|[A-Z][a-z]+(?:\s+and\s+[A-Z][a-z]+)?|(?:each|both|all)\s+of\s+them|"
    r"(?:the|each|every|his|her|its|their|our)(?:\s+(?!\w+ly\b)[a-z]+){1,2})\s+"
    r"(?:has|have|had|needs?|pays?|paid|costs?|gets?|got|earns?|earned|makes?|made|takes?|took|spends?|"
    r"spent|sells?|sold|saves?|saved|receives?|received|weighs?|requires?|uses?|used|scores?|scored)\s+"
    r"((?:\\?[$\u20ac\u00a3])?\s*\d[\d,./]*\s*%?(?:\s+(?:square|cubic))?"
    r"(?:\s+(?!(?:already|first|once|before|earlier|yesterday|short|extra|\w+ly)\b)[a-z]+)?"
    r"(?:\s+(?:left|remaining|altogether|overall|in\s+(?:total|all|(?:that|this|a|one)\s+[a-z]+)))?"
    r"\s*[.!]*)$"
)
"""``So Anna has 12 apples in total.``; not "so Ann thinks that Ben has 12", "has 12, Ben eight"."""

_CONTINENTAL = re.compile(r"\b(?:ist|beträgt|est|vaut|es|antwort|réponse|respuesta)\b", re.I)
_WITH_UNIT = re.compile(
    r"[^a-z]*(?:[ckm]?[glm]|min|[hs]|Euros?)?[\s.!]*", re.I
)  # words may change it
_AMBIGUOUS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}[.,]\d{3}(?![.,]?\d)")
"""``3.500``, which is 3500 in German, French and Spanish, and 3.5 in English."""

_COUNTED = re.compile(
    r"((?:[A-Za-z][A-Za-z'-]*,?\s+)*)((?:\\?[$\u20ac\u00a3])?\s*[-+\u2212]?\d[\d,]*(?:\.\d+)?(?:/\d+)?"
    r"\s*%?)(?:\s+[$\u20ac\u00a3])?((?:[\s,]+[A-Za-z][A-Za-z'-]+)*)[\s.,;!\u3002]*"
)

# Words allowed before a number after a marker, which do not change it.
_LEADING_WORDS = re.compile(
    r"(?:(?:exactly|precisely|simply|just|only|about|approximately|roughly|an?|the|total|of)\b,?\s*)*",
    re.IGNORECASE,
)

# A number is not alone before these; words of one letter are variables.
_NUMBER_MODIFIER = re.compile(
    r"\b(?:more|less|fewer|greater|higher|lower|times|percent|hundreds?|thousands?|[mbtr]+illions?|"
    r"dozens?|tens|score|gross|doubled|tripled|quadrupled|halved|negated|half|halves|thirds?|quarters?|fourths?|fifths?|squared|cubed|factorial|plus|minus|"
    r"modulo|mod|(?<!ways )to|or|and|if|when|base|pi|roots?|sqrt|point|but|"
    r"though|although|however|than|divided|multiplied|power|least|"
    r"too|short|additional|extra|missing|"
    r"most|between|above|below|under|over|within|almost|nearly|per(?=\s+cent)|cents?)\b",
    re.IGNORECASE,
)

_LIST = re.compile(
    r"(?:\s|[$,;]|\\[()\[\],; ]|\\q?quad|\\text\s*\{[\s,]*(?:and|or)?[\s,]*\}|"
    r"\b(?:and|or|also)\b|[A-Za-z]_?\{?\d*\}?\s*=|"
    r"\(?\b(?:for|if|when)\b(?:\.(?=\d)|[^.\n,;]){1,40}?(?=,|;|\band\b|\bor\b))*"
)

_FINAL = re.compile(  # a heading does not count, though it may number a step
    r"\bfinal\s+answer\s*(?:is|:|=)[^\n\d$\\]{0,200}[\d$\\]|"
    r"^####[ \t]*\$?[-+\u2212]?[\d.,/]+%?\$?[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)

_RETRACTION = re.compile(
    r"[\s.,;:!$*)\]\\]*(?:(?:no|wait|hmm|oops|sorry|actually|but)\b[\s.,:!]*)*"
    r"(?:(?:that|this|it)(?:['\u2019]s|\s+is|\s+was)\s+(?:wrong|incorrect|not\s+(?:right|correct))"
    r"(?!\s+(?:for|if|when|in|unless)\b)|"
    r"I\s+(?:was\s+wrong|made\s+an?\s+(?:mistake|error))|correction\b|"
    r"(?:it|the\s+(?:right\s+|correct\s+)?answer)\s+(?:should|must)\s+be\s+[$\\(*]*[-\d\\])",
    re.IGNORECASE,
)

_COMMANDS = re.compile(r"\\[a-z]+")
_MAX_JOIN = 60
_MAX_BOXES = 32
_JOINS = re.compile(r"\b(?:and|or)\b|,|;")
_OPERATOR = re.compile(r"[\\^=<>+*/]|(?:\b[a-zA-Z]|\d|^)\s*[-−]\s*(?:[a-zA-Z]\b|\d)")


def extract_answer(text: str, find: ExtractionMode = "marked") -> str:
    """Return the final answer of a text, or an empty string where there is none.

    Args:
        text: A worked solution, or a bare answer.
        find: Position: ``marked`` after the last "answer is" or in a box, ``number`` the last
            number, ``whole`` the whole text.
    """
    if find == "whole":
        return text.strip()
    if find == "number":
        numbers = _NUMBER.findall(text)
        return numbers[-1].strip() if numbers else ""
    return _find_last_boxed(text) or _unwrap_brackets(_answer_line(text)[0])


def extract_answers(text: str, find: ExtractionMode = "marked") -> list[str]:
    """Return the possible readings of the final answer of a text, the literal one first.

    A statement in words is also read as its last expression ("the largest n is 34.",
    "so $x < 3$.", "12 apples", "so Ann has 12 apples"), unless it is a negation. Of several
    statements only one is read.
    """
    answer = extract_answer(text, find)
    if not answer or find != "marked":
        return [answer] if answer else []
    choice = _CHOICE.fullmatch(answer)
    if choice is not None:
        return [answer, choice[3].strip(), choice[1] or choice[2]]
    if _find_last_boxed(text):
        return [answer]
    line, is_first = _answer_line(text)
    sentences = [
        reading for reading in _SENTENCE.split(line) if re.search(r"\d|\$|\\", reading)
    ] or [line]
    sentence = sentences[0 if is_first else -1]
    if is_first and _RETRACTION.match(line.partition(sentence)[2]):
        return []
    is_continental = bool(_CONTINENTAL.search(text))
    read = [answer, _unwrap_brackets(sentence)]
    if not _NEGATION.search(sentence):
        copulas = list(_COPULA.finditer(sentence))
        stated = sentence[copulas[-1].end() :] if copulas else sentence
        spans = list(_MATH_SPAN.finditer(sentence))
        if copulas:
            read.append(_unwrap_brackets(stated))
        if len(spans) == 1 and not re.search(r"\d", _MATH_SPAN.sub("", sentence)):
            read.append(next(filter(None, spans[0].groups())))
        if not is_continental or _WITH_UNIT.fullmatch(stated):
            read.append(_counted_number(stated.strip(), is_first))
        concluded = _CONCLUSION.search(sentence)
        read.append(_counted_number(concluded[1] if concluded else "", is_marked=False))
    if is_continental and any(map(_AMBIGUOUS.search, read)):
        return []
    return [reading for reading in dict.fromkeys(map(str.strip, read)) if reading]


def _counted_number(phrase: str, is_marked: bool) -> str:
    """Return the only number in a phrase of words that do not change it."""
    match = _COUNTED.fullmatch(phrase)
    if match is None or _is_number_modifier(match[3]):
        return ""
    if match[1] and not (is_marked and _LEADING_WORDS.fullmatch(match[1])):
        return ""
    return match[2].lstrip("\\$\u20ac\u00a3 ")


def _is_number_modifier(words: str) -> bool:
    """Return whether the words after a number change or negate it; a unit does not."""
    return bool(_NUMBER_MODIFIER.search(words) or _NEGATION.search(words))


def _answer_line(text: str) -> tuple[str, bool]:
    """Return the line that states the answer, and whether a marker shows where it starts."""
    text = text.split("<|")[0].replace('\\"', '"')
    tagged = [match for match in _TAGGED.finditer(text) if match[1].strip()]
    text = tagged[-1][0] if tagged else text.split("</answer>")[0]
    text = _DISPLAY.sub(lambda match: " ".join(match[0].split()), text)
    marks = list(_MARK.finditer(text))
    while len(marks) > 1 and (claim := _CLAIM.match(text, marks[-1].start())):
        if _NEGATION.search(claim[0]):
            break
        marks.pop()
    lines = text[marks[-1].end() :].strip().splitlines() if marks else text.strip().splitlines()
    return (lines[0 if marks else -1], bool(marks)) if lines else ("", bool(marks))


def is_answer_marked(text: str) -> bool:
    """Return whether a text marks its answer."""
    return bool(_BOXED.search(text) or _MARK.search(text))


def normalize_answer(answer: str) -> str:
    """Return the canonical form of an answer: its number, else its words and symbols."""
    bare = _strip_text_command(answer)
    number = _parse_number(bare)
    if number is not None:
        return str(number)
    return " ".join(
        _tokenize_answer(bare.rstrip("!?;,:. ") if re.search("[^\\W\\d_]", bare) else bare)
    )


def is_same_answer(answer: str, reference: str) -> bool:
    """Return whether two answers are equal: as numbers where both are numbers, else as words.

    A comma is a decimal comma where the other answer has a point and the same digits. In the
    second answer, which may be the reference, ``2,5`` stays two numbers.
    """
    answer, reference = (
        rewrite_notation(_strip_text_command(text)) for text in (answer, reference)
    )
    if _has_decimal_comma(answer, reference, 1) or _has_decimal_comma(reference, answer, 2):
        return True
    numbers = _parse_number(answer), _parse_number(reference)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1]
    if not answer.strip() or not reference.strip():
        return False
    if _OPERATOR.search(answer) or _OPERATOR.search(reference):  # as words, x+1 and x-1 are equal
        return "".join(answer.split()) == "".join(reference.split())
    if any(_EXACT.search(text) for text in (answer, reference)):  # (1,2) is not [1,2] or 12
        return _tokenize_answer(answer) == _tokenize_answer(reference)
    return bool(exact_match(answer, reference))


def _has_decimal_comma(answer: str, reference: str, digits: int) -> bool:
    match = _DECIMAL_COMMA.fullmatch(_unwrap_brackets(answer).replace("{,}", ","))
    if match is None or len(match[1]) < digits:
        return False
    return match[0].replace(",", ".") == _unwrap_brackets(reference)


def _parse_number(text: str) -> Fraction | None:
    """Parse a number; commas may only separate thousands."""
    bare = rewrite_notation(_unwrap_brackets(text).strip("%"))
    if _POINTS.fullmatch(bare):  # 1.234.567,8 cannot be anything else
        bare = bare.replace(".", "").replace(",", ".")
    bare = _ZERO_COMMA.sub(r"\1.", bare)
    bare = _THOUSANDS.sub("", bare)
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


def _strip_text_command(text: str) -> str:
    r"""Return the content of ``\text{...}`` if that is the whole text."""
    match = _TEXT_COMMAND.fullmatch(text.strip().strip("$ "))
    return match[1] if match else text


def _tokenize_answer(text: str) -> list[str]:
    """Return the words and symbols of an answer, without articles and surrounding marks."""
    bare = _THOUSANDS.sub("", _unwrap_brackets(text)).casefold()
    return [token for token in _TOKEN.findall(bare) if token not in _ARTICLES]


def _find_last_boxed(text: str) -> str:
    """Return the content of the last box, or of the list of boxes that it ends."""
    starts = list(_BOXED.finditer(text))[-_MAX_BOXES:]
    boxes = [box for start in starts if (box := _read_boxed(text, start))]
    if not boxes or _BOXED.search(text, boxes[-1][1]):
        return ""  # the last one is not closed
    if _FINAL.search(text, boxes[-1][1]) or _RETRACTION.match(text, boxes[-1][1]):
        return ""  # a step was boxed, and the answer follows it
    held = [boxes[-1][2]]
    for left, right in zip(reversed(boxes[:-1]), reversed(boxes), strict=False):
        if not _is_list(text[left[1] : right[0]]):
            break
        held.insert(0, left[2])
    return ", ".join(dict.fromkeys(held))


def _is_list(between: str) -> bool:
    """Return whether the text between two boxes makes them items of one answer."""
    if len(between) > _MAX_JOIN or not _LIST.fullmatch(between):
        return False
    return bool(_JOINS.search(between)) or not re.search(r"\w|\n", _COMMANDS.sub("", between))


def _read_boxed(text: str, start: re.Match[str]) -> tuple[int, int, str] | None:
    position = start.end()
    if text[position - 1] != "{":  # the form \boxed 5
        word = text[position:].split()[0]
        return start.start(), position + len(word), word.strip(_SURROUNDING_MARKS).removesuffix(".")
    depth = 1
    for end in range(position, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return start.start(), end + 1, text[position:end].strip()
    return None


def _unwrap_brackets(text: str) -> str:
    """Strip surrounding marks and one pair of brackets around a single item."""
    bare = _trim_marks(text)
    while (
        len(bare) > 1
        and _BRACKETS.get(bare[0]) == bare[-1]
        and not set(bare[1:-1]) & set("()[]{},")
    ):
        bare = _trim_marks(bare[1:-1])
    return bare


def _trim_marks(text: str) -> str:
    """Strip surrounding marks, but not the decimal point of .5."""
    bare = text.strip(_SURROUNDING_MARKS).removeprefix("'" if "'" in text[1:] else "")
    if len(bare) < len(text.strip(_SURROUNDING_MARKS)):  # quoted; f' is not
        bare = bare.removesuffix("'").strip(_SURROUNDING_MARKS)
    while bare.endswith("."):
        bare = bare[:-1].rstrip(_SURROUNDING_MARKS)
    return bare if re.match(r"\.\d", bare) else bare.lstrip(_SURROUNDING_MARKS + ".")


_MAX_FORMULA = 300
_CPU_S = 6
"""Processor time of one comparison."""
_MEMORY_BYTES = 7 << 28
_FORMULA = re.compile(r"[\d\\^=<>+*/]|\b[a-zA-Z]\b")
_PLAIN_NUMBER = re.compile(r"[-+]?[\d.,]+%?")
_MATRIX = re.compile(r"\\begin\{\w*(?:matrix|array)\}")
_NO_NUMBER = re.compile(  # x - 1 = 0; 7 more, 7 ab
    r"[^=<>]*[-+*^][^=<>]*=\s*0|[-+]?[\d.,/]+%?\s*(?!pi\b)[A-Za-z]{2,}[\s.]*"
)
_UPRIGHT = re.compile(r"\\mathrm\s*\{\s*([ei])\s*\}")
_END_MARKS = re.compile(r"(?<!\\)[.,;:\s]+$")
_COMMA = re.compile(r"(?<!\\),")
_SCALE = re.compile(r"\b(?:hundreds?|thousands?|[mbtr]+illions?|dozens?|score|gross)\b")
_UNEQUAL = re.compile(r"\\neq?\b|!=|\u2260|\\not\s*=")
_ONE_TUPLE = re.compile(r"^\s*\\\{\s*(\([^(){}]*\))\s*\\\}\s*$")
_VALUE = re.compile(r"([a-zA-Z]\w*\s*\([^()=]*\))\s*=\s*([^=]+)")
_ASSIGNED = re.compile(
    r"([a-zA-Z])\s*=\s*([^,;=()]+?)\s*(?:$|,|;|\\text\s*\{\s*and\s*\}|\band\b)\s*(?:and\b\s*)?"
)
_ACCENTED = re.compile("[À-ÖØ-öø-ɏ]")  # in words, as of "höchstens 12", which a parser skips
_UNIT = re.compile(r"(?:(?<=[\d})])|(?<=\\pi))(?:\\[ ,;:]|~|\s)*\\text\s*\{([^{}\d\\$]*)\}[\s.]*$")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}(?![A-Za-z]*\s*[({_^])")

_CODE = "from stillroom.evaluate.final_answer import serve_comparisons; serve_comparisons()"


def is_same_formula(answer: str, reference: str) -> bool:
    """Return whether two answers are equal as formulas, sets, intervals or equations.

    Raises:
        MissingExtraError: If math-verify is not installed and one of the two is a formula.
        ResourceError: If the process that compares formulas cannot be started.
    """
    answer, reference = rewrite_notation(answer), rewrite_notation(reference)
    if differs_in_unit(answer, reference) or any(map(_ACCENTED.search, (answer, reference))):
        return False
    answer, reference = strip_unit(answer, reference), strip_unit(reference, answer)
    aligned = align_solution_sets(*map(_write_formula, (answer, reference)))
    if aligned is None:
        return False
    answer, reference = _align_values(*aligned)
    if max(len(answer), len(reference)) > _MAX_FORMULA or not (
        _FORMULA.search(answer) and _FORMULA.search(reference)
    ):
        return False
    answer, reference = _strip_unit(answer), _strip_unit(reference)
    if _BOXED.search(answer) or differs_in_symbols(answer, reference):  # a box taken back
        return False
    if any(_differs_in_kind(*sides) for sides in ((answer, reference), (reference, answer))):
        return False
    if find_spec("math_verify") is None:
        raise MissingExtraError.of("math-verify", "verify", "comparing formulas")
    return _compare_in_process(answer, reference)


def differs_in_unit(answer: str, reference: str) -> bool:
    """Return whether two answers end with different units of measure."""
    unit, other = find_unit(answer), find_unit(reference)
    return unit is not None and other is not None and not is_same_unit(unit, other)


def _write_formula(text: str) -> str:
    """Return an answer as Math-Verify reads it in full."""
    # it drops an upright e or i: 1 - 1/e would equal 1 + 1/e
    bare = _END_MARKS.sub("", _UPRIGHT.sub(r"\1", rewrite_notation(text.strip().strip("$ "))))
    number = _parse_number(bare)
    if number is None:
        return bare
    if _MIXED.fullmatch(bare):
        return str(number)
    return bare if _COMMA.search(bare) else _THOUSANDS.sub("", bare)  # 0,111 may be a decimal


def _align_values(answer: str, reference: str) -> tuple[str, str]:
    """Return what is to be compared of two answers that name what they give.

    ``x=3, y=4`` beside a tuple is ``(3, 4)``, in the order of the names; ``f(3)=5`` beside
    ``f(3)=6`` is 5 beside 6, since Math-Verify takes both for definitions of f. A set of one tuple
    is that tuple.
    """
    answer, reference = (_ONE_TUPLE.sub(r"\1", text) for text in (answer, reference))
    calls = [_VALUE.fullmatch(text) for text in (answer, reference)]
    if calls[0] and calls[1] and calls[0][1] == calls[1][1]:
        return calls[0][2], calls[1][2]
    sides = [answer, reference]
    for side, other in ((0, 1), (1, 0)):
        call = calls[side]
        if call and re.search(r"\d", call[1]) and "=" not in sides[other]:
            sides[side] = call[2]
        pairs = _ASSIGNED.findall(sides[side])
        values = dict(pairs)
        if 1 < len(values) == len(pairs) and sides[other].lstrip().startswith("("):
            if _ASSIGNED.sub("", sides[side]).strip():
                continue
            sides[side] = f"({', '.join(values[name] for name in sorted(values))})"
    return sides[0], sides[1]


def _strip_unit(text: str) -> str:
    r"""Remove a trailing unit (``\text{ square inches}``) from a formula."""
    match = _UNIT.search(text)
    return text if match is None or _is_number_modifier(match[1]) else text[: match.start()]


def _differs_in_kind(answer: str, reference: str) -> bool:
    """Return whether two answers differ in kind, which Math-Verify ignores.

    It compares only the right-hand sides of equations, a zero matrix with 0, inequalities as if
    they were equations, and only the last number of a sentence, or the first of "7 ab".
    """
    scales = [_SCALE.search(text) is None for text in (answer, reference)]
    if (
        scales[0] != scales[1]
        or _PROSE.search(answer)
        or bool(_UNEQUAL.search(answer)) > bool(_UNEQUAL.search(reference))
    ):
        return True
    return bool(
        _PLAIN_NUMBER.fullmatch(answer)
        and (_MATRIX.search(reference) or _NO_NUMBER.fullmatch(reference))
    )


@lru_cache(maxsize=4096)
def _compare_in_process(answer: str, reference: str) -> bool:
    """Return Math-Verify's verdict; False if it does not come to one within the limits."""
    return _PROCESS.ask(json.dumps([answer, reference, _CPU_S]).encode()) == b"1\n"


def serve_comparisons() -> None:
    """Compare formulas from stdin until it closes; the child side of ``is_same_formula``."""
    serve_requests(_load_comparison, _MEMORY_BYTES)


def _load_comparison() -> Callable[[bytes], bytes]:
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def compare(answer: str, reference: str) -> bool:
        sides = [parse(f"${text}$", parsing_timeout=None) for text in (reference, answer)]
        is_chain = bool(re.search(r"[<>]|\\[lg]e", answer))
        return all(sides) and bool(
            verify(*sides, timeout_seconds=None, allow_set_relation_comp=is_chain)
        )

    def reply(line: bytes) -> bytes:
        answer, reference, cpu_s = json.loads(line)
        limit_seconds(cpu_s)
        try:
            return b"%d" % compare(answer, reference)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  # the library raises anything for what it cannot read
            return b"0"

    compare("x^2", "0.5")  # loads what the first comparison needs
    return reply


def _make_start_error(problem: str) -> ResourceError:
    return ResourceError(
        f"the process that compares formulas ended: {problem}",
        code="evaluate.sandbox",
        expected=f"{sys.executable} can be started",
        next="start the job again; if that does not help, install math-verify anew",
    )


_PROCESS = LimitedProcess(lambda: _CODE, _make_start_error)
