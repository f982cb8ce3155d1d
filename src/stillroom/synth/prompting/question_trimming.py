"""Trimming of a completed question to the part that asks something new.

A small teacher appends tails ("... in Python?", "... converted to a common type?"). A question that
names only what its evidence names, and does not answer itself, is left unchanged, including one
that ends in a preposition ("What is a rotor capable of?"). Any other may be cut, but only where the
words before the cut are complete without the rest. Lexical, English only; words are never added.
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
"""Words that open a clause, which is removed as a whole."""

_JOINING = frozenset({"and", "or", "but"})
_ASKED_TOO = re.compile(r"\s+(?:how|what|why|when|where|which|who)\b", re.IGNORECASE)
_STRANDED = re.compile(rf"\s*(?:{'|'.join(sorted(PREPOSITIONS - {'using'}))})\b")
_LED_ON = re.compile(r"\s+to\s+(?:\w+ly\s+)?\w+\b")
_TAKE_OBJECTS = frozenset({"do", "have", "make", "give", "get", "use"})
_MIN_WORDS = 4
_MIN_NEW = 2


class TrimmedQuestion(NamedTuple):
    """The trimmed question, or the reason why it was rejected."""

    question: str = ""
    reason: str = ""


def trim_question(question: str, opening: QuestionPrefix, evidence: str) -> TrimmedQuestion:
    """Return the question's longest prefix that fits and is a complete question.

    It fits if it names only what the evidence names, leaves the evidence something to answer, and
    continues its opening as ``fits_question_prefix`` requires. The opening is never cut.
    """
    reason = "question strays, or tells the statement on"
    body = question.rstrip("?？. ")
    if not question.startswith(opening.text) or len(body) < len(opening.text):
        # the opening itself may end in such a mark: not a question
        return TrimmedQuestion(reason=reason)
    evidence_stems = set(extract_content_stems(evidence))
    for end, is_sound in _ends(body, opening, evidence):
        if not _fits(body[:end], opening, evidence, evidence_stems):
            continue
        if is_sound:
            return TrimmedQuestion(f"{body[:end]}?")
        reason = "question strays where it cannot be cut"
    return TrimmedQuestion(reason=reason)


def _fits(part: str, opening: QuestionPrefix, evidence: str, evidence_stems: set[str]) -> bool:
    question_stems = set(extract_content_stems(part, frames=False))
    return (
        len(part.split()) >= _MIN_WORDS
        and compute_support(question_stems, evidence_stems) == 1.0
        and len(evidence_stems - question_stems) >= _MIN_NEW
        and part.count('"') % 2 == 0
        and part.count("(") == part.count(")")
        and fits_question_prefix(opening, part, evidence)
    )


def _ends(body: str, opening: QuestionPrefix, evidence: str) -> list[tuple[int, bool]]:
    """Return the possible ends of a question, last first, and whether a question remains."""
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
    """Yield the positions after the opening where a question may be cut.

    A preposition before another one, or before a clause, belongs to the words before it, and is
    kept with them ("what is it capable of | in winter"). No cut is made within a clause.
    """
    least, is_whole_clause = len(opening.text), True
    boundaries = list(_BOUNDARY.finditer(body, least))
    follows = {match.start() for match in boundaries}
    stranded = -1
    for match in boundaries:
        boundary, start = match[1].lower(), match.start()
        is_joining = boundary in _JOINING
        if start > least:
            is_sound = start == stranded or (
                match.end() not in follows
                and not opening.is_whole
                and (not is_joining or bool(_ASKED_TOO.match(body, match.end())))
                and _asks_before(body[least:start].lower().split(), boundary, opening)
            )
            yield start, is_sound and is_whole_clause
        if match.end() in follows and boundary in ENDINGS:
            stranded = match.end()
        behind = body[match.end() :].split(maxsplit=1)
        opens = boundary in _CLAUSES or (boundary == "to" and bool(behind) and behind[0] in VERBS)
        is_whole_clause = is_whole_clause and not opens


def _asks_before(tail: list[str], boundary: str, opening: QuestionPrefix) -> bool:
    """Return whether the words after an incomplete opening form a question without the rest.

    ``What`` must be the object of their verb; "of" never starts a removable part.
    """
    if boundary == "of" or not tail:
        return False
    if opening.has_verb and not opening.leads_on:
        return _BOUNDARY.fullmatch(f" {tail[0]}") is not None
    if opening.has_verb:
        return False  # only the verb that it leads to is kept
    verb, last = opening.verb, tail[-1]
    if last == verb:
        return opening.next not in PREPOSITIONS and (last, boundary) != ("have", "to")
    if last in _TAKE_OBJECTS:
        return (last, boundary) != ("have", "to")
    return last not in VERBS and (tail[0] == verb or tail[0] in _TAKE_OBJECTS)
