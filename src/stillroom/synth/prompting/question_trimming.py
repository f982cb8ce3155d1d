"""Trimming of a completed question to the part that asks something new.

A small teacher adds tails ("... in Python?", "... converted to a common type?"). A question that
names only what its evidence names, and does not answer itself, stays as it was written, with a
preposition at its end, too ("What is a rotor capable of?"). Any other may be cut, but only where
the words before need none of those that follow. Lexical; it never adds a word. English.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from stillroom.synth.lexical_overlap import (
    collapse_whitespace,
    compute_support,
    extract_content_stems,
)
from stillroom.synth.prompting.english_verbs import (
    VERBS,
)
from stillroom.synth.prompting.question_prefixes import (
    ENDINGS,
    PREPOSITIONS,
    QuestionPrefix,
    fits_question_prefix,
)

__all__ = ["TrimmedQuestion", "trim_question"]

_BOUNDARY = re.compile(
    r",?\s+(in|on|at|of|for|to|from|with|within|when|if|while|during|after|before|by|using|and|or|"
    r"as|that|which|where|because|without|between|among|through|inside|into|but)\b",
    re.IGNORECASE,
)

_CLAUSES = frozenset(
    str.split("when if while during after before by using that which where because without")
)
"""What opens a clause: it goes as a whole."""

_JOINING = frozenset({"and", "or", "but"})
_ASKED_TOO = re.compile(r"\s+(?:how|what|why|when|where|which|who)\b", re.IGNORECASE)
_STRANDED = re.compile(rf"\s*(?:{'|'.join(sorted(PREPOSITIONS - {'using'}))})\b")
_LED_ON = re.compile(r"\s+to\s+(?:\w+ly\s+)?\w+\b")
_TAKE_OBJECTS = frozenset({"do", "have", "make", "give", "get", "use"})
_MIN_WORDS = 4
_MIN_NEW = 2


class TrimmedQuestion(NamedTuple):
    """What is kept of a question, or the reason why nothing is."""

    question: str = ""
    reason: str = ""


def trim_question(question: str, opening: QuestionPrefix, evidence: str) -> TrimmedQuestion:
    """Return the question's longest beginning that fits and is a question by itself.

    It fits if it names only what the evidence names, leaves the evidence something to answer, and
    goes on with its opening as ``fits_question_prefix`` asks. The opening stays whole.
    """
    reason = "question strays, or tells the statement on"
    body = question.rstrip("?？. ")
    if not question.startswith(opening.text) or len(body) < len(opening.text):
        return TrimmedQuestion(
            reason=reason
        )  # the opening itself may end in such a mark: no question
    told = set(extract_content_stems(evidence))
    for end, is_sound in _ends(body, opening, evidence):
        if not _fits(body[:end], opening, evidence, told):
            continue
        if is_sound:
            return TrimmedQuestion(f"{body[:end]}?")
        reason = "question strays where it cannot be cut"
    return TrimmedQuestion(reason=reason)


def _fits(part: str, opening: QuestionPrefix, evidence: str, told: set[str]) -> bool:
    asked = set(extract_content_stems(part, frames=False))
    return (
        len(part.split()) >= _MIN_WORDS
        and compute_support(asked, told) == 1.0
        and len(told - asked) >= _MIN_NEW
        and part.count('"') % 2 == 0
        and part.count("(") == part.count(")")
        and fits_question_prefix(opening, part, evidence)
    )


def _ends(body: str, opening: QuestionPrefix, evidence: str) -> list[tuple[int, bool]]:
    """Return where a question may end, the last place first, and whether a question is left."""
    least = len(opening.text)
    ends = dict(_cuts(body, opening))
    stranded = _STRANDED.match(body, least) if opening.strands else None
    if stranded is not None and opening.next in {stranded[0].strip(), "using"}:
        ends[stranded.end()] = True
    led_on = _LED_ON.match(body, least) if opening.leads_on else None
    led = collapse_whitespace(led_on[0]) if led_on is not None else ""
    if led_on is not None and (led == "to do" or led in collapse_whitespace(evidence)):
        ends[led_on.end()] = True
    if body[least : least + 1] in {"", " ", ","}:
        ends[least] = not (body[:least].endswith(" have") and body[least:].startswith(" to "))
    ends[len(body)] = True
    return sorted(ends.items(), reverse=True)


def _cuts(body: str, opening: QuestionPrefix) -> Iterator[tuple[int, bool]]:
    """Yield the places behind an opening before which or after which a question may be cut.

    A preposition before another one, or before a clause, belongs to what is before it, and is kept
    with it ("what is it capable of | in winter"). No cut is made within a clause.
    """
    least, is_whole_clause = len(opening.text), True
    found = list(_BOUNDARY.finditer(body, least))
    follows = {match.start() for match in found}
    stranded = -1
    for match in found:
        word, start = match[1].lower(), match.start()
        is_joining = word in _JOINING
        if start > least:
            is_sound = start == stranded or (
                match.end() not in follows
                and not opening.is_whole
                and (not is_joining or bool(_ASKED_TOO.match(body, match.end())))
                and _asks_before(body[least:start].lower().split(), word, opening)
            )
            yield start, is_sound and is_whole_clause
        if match.end() in follows and word in ENDINGS:
            stranded = match.end()
        behind = body[match.end() :].split(maxsplit=1)
        opens = word in _CLAUSES or (word == "to" and bool(behind) and behind[0] in VERBS)
        is_whole_clause = is_whole_clause and not opens


def _asks_before(tail: list[str], word: str, opening: QuestionPrefix) -> bool:
    """Return whether the words behind an opening that is not whole ask something without the rest.

    ``What`` must be the object of their verb; "of" never begins what can be left out.
    """
    if word == "of" or not tail:
        return False
    if opening.has_verb and not opening.leads_on:
        return _BOUNDARY.fullmatch(f" {tail[0]}") is not None
    if opening.has_verb:
        return False  # the verb that it leads to, and no more, is kept
    verb, last = opening.verb, tail[-1]
    if last == verb:
        return opening.next not in PREPOSITIONS and (last, word) != ("have", "to")
    if last in _TAKE_OBJECTS:
        return (last, word) != ("have", "to")
    return last not in VERBS and (tail[0] == verb or tail[0] in _TAKE_OBJECTS)
