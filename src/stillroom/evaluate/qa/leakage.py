"""Question-set leakage: copied wording, answers in questions, near duplicates, overlap of splits.

A question that copies its passage's words is found by any keyword search. One that holds its own
answer asks nothing. One that was made from a passage of the very index that is measured knows where
that index's cuts lie, and flatters its chunker. Two that are nearly one, on both sides of a split,
let what was tuned be measured. Knows texts, no index.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stillroom.evaluate.metrics.answers import contains_answer
from stillroom.evaluate.qa.questions import JudgedQuestion
from stillroom.evaluate.report import Table
from stillroom.text.dedup.near_duplicates import find_near_duplicates
from stillroom.text.dedup.shingles import ngram_overlap
from stillroom.text.unicode import split_words

__all__ = [
    "LeakageFinding",
    "LeakageKind",
    "find_leakage",
    "find_split_overlap",
    "tabulate_leakage",
]

LeakageKind = Literal["copied", "answer-in-question", "boundary", "near-duplicate", "crossing"]

_NGRAM = 5
_COPIED_SHARE = 0.5
_NEAR_SIMILARITY = 0.7
_SHINGLE_WORDS = 5
_DESCRIPTIONS: Mapping[LeakageKind, str] = {
    "copied": f"half or more of the question's runs of {_NGRAM} words stand in its passage: any "
    "keyword search finds it",
    "answer-in-question": "the question holds its own answer",
    "boundary": "made from a passage of this very index: it knows where the cuts lie",
    "near-duplicate": "nearly the same as an earlier question: it counts twice",
    "crossing": "nearly the same as a question that chooses: what was tuned is measured",
}
_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LeakageFinding:
    """One question that is easier than it looks; ``value`` is the overlap or likeness, 0 to 1."""

    question: str
    kind: LeakageKind
    value: float
    other: str = ""


def find_leakage(
    questions: Sequence[JudgedQuestion],
    held: Mapping[str, Sequence[str]],
    passages: Container[str],
) -> list[LeakageFinding]:
    """Return what is wrong with the questions of one set, in their order.

    Args:
        questions: The set.
        held: For each question the texts of the passages that hold its evidence.
        passages: The ids of the index's passages.
    """
    found: list[LeakageFinding] = []
    for one in questions:
        overlap = max((_copied_share(one.text, text) for text in held.get(one.id, ())), default=0.0)
        if overlap >= _COPIED_SHARE:
            found.append(LeakageFinding(one.id, "copied", overlap))
        if contains_answer(one.text, one.answers):
            found.append(LeakageFinding(one.id, "answer-in-question", 1.0))
        if any(piece.passage_id in passages for piece in one.evidence if piece.passage_id):
            found.append(LeakageFinding(one.id, "boundary", 1.0))
    near = find_near_duplicates([one.text for one in questions], threshold=_NEAR_SIMILARITY)
    return found + [
        LeakageFinding(
            questions[one.index].id, "near-duplicate", one.similarity, questions[one.kept].id
        )
        for one in near
    ]


def find_split_overlap(
    choosing: Mapping[str, str], measuring: Mapping[str, str]
) -> list[LeakageFinding]:
    """Return the questions that measure and are nearly one that chooses; texts by id."""
    names = [*choosing, *measuring]
    texts = [*choosing.values(), *measuring.values()]
    near = find_near_duplicates(texts, threshold=_NEAR_SIMILARITY)
    return [
        LeakageFinding(names[one.index], "crossing", one.similarity, names[one.kept])
        for one in near
        if names[one.index] in measuring and names[one.kept] in choosing
    ]


def tabulate_leakage(leaks: Sequence[LeakageFinding], count: int) -> Table | None:
    """Return what was found by kind, with some ids; nothing where nothing was.

    Args:
        leaks: What was found.
        count: How many questions were looked at.
    """
    rows = []
    for kind, said in _DESCRIPTIONS.items():
        ids = [one.question for one in leaks if one.kind == kind]
        if ids:
            rows.append((kind, f"{len(ids)} of {count}", said, ", ".join(ids[:_MAX_SHOWN])))
    if not rows:
        return None
    columns = ("what", "questions", "why it matters", "for instance")
    return Table("what makes this set easier than people's questions", columns, tuple(rows))


def _copied_share(question: str, passage: str) -> float:
    """Return the share of the question's runs of five words that stand in the passage."""
    if len(split_words(question)) <= _SHINGLE_WORDS:
        return 0.0  # one run would be the whole question: too short to tell
    return ngram_overlap(passage, question, n=_NGRAM)
