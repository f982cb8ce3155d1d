"""Leakage in a question set: copied words, answers in questions, train-test overlap.

A question with its passage's wording is found by any keyword search. One that contains its own
answer is trivial. One that stands behind its passage's heading is found by it. One generated from a
passage of the evaluated index follows its chunk boundaries, which favors its chunker. Near
duplicates on both sides of a split mix tuning and test data.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stillroom.evaluate.metrics.answers import contains_answer
from stillroom.evaluate.qa.questions import JudgedQuestion
from stillroom.evaluate.report import Table
from stillroom.text.dedup.near_duplicates import find_near_duplicates
from stillroom.text.dedup.shingles import ngram_overlap
from stillroom.text.unicode import normalize_text, split_words

__all__ = [
    "LeakageFinding",
    "LeakageKind",
    "find_leakage",
    "find_split_overlap",
    "tabulate_leakage",
]

LeakageKind = Literal[
    "copied", "answer-in-question", "heading", "boundary", "near-duplicate", "crossing"
]
_NGRAM = 5
_COPIED_SHARE = 0.5
_NEAR_SIMILARITY = 0.7
_SHINGLE_WORDS = 5
_DESCRIPTIONS: Mapping[LeakageKind, str] = {
    "copied": f"half or more of the question's runs of {_NGRAM} words stand in its passage: any "
    "keyword search finds it",
    "answer-in-question": "the question holds its own answer",
    "heading": "stands behind a heading of its passage, and headings are searched",
    "boundary": "made from a passage of this very index: it knows where the cuts lie",
    "near-duplicate": "nearly the same as an earlier question: it counts twice",
    "crossing": "nearly the same as a question that chooses: what was tuned is measured",
}
_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LeakageFinding:
    """One question that is easier than it seems; ``value`` is overlap or similarity, 0 to 1."""

    question: str
    kind: LeakageKind
    value: float
    other: str = ""


def find_leakage(
    questions: Sequence[JudgedQuestion],
    held: Mapping[str, Sequence[str]],
    passages: Container[str],
    headings: Mapping[str, Iterable[str]] | None = None,
) -> list[LeakageFinding]:
    """Return the findings on the questions of one set, in order.

    Args:
        questions: The questions.
        held: Texts of the passages that hold a question's evidence, by its id.
        passages: Ids of the index's passages.
        headings: Titles and headings of those passages, by the question's id.
    """
    findings: list[LeakageFinding] = []
    for question in questions:
        asked = _strip_heading(question.text, (headings or {}).get(question.id, ()))
        if asked != question.text:
            findings.append(LeakageFinding(question.id, "heading", 1.0))
        overlap = max(
            (_copied_share(asked, text) for text in held.get(question.id, ())), default=0.0
        )
        if overlap >= _COPIED_SHARE:
            findings.append(LeakageFinding(question.id, "copied", overlap))
        if contains_answer(question.text, question.answers):
            findings.append(LeakageFinding(question.id, "answer-in-question", 1.0))
        if any(piece.passage_id in passages for piece in question.evidence if piece.passage_id):
            findings.append(LeakageFinding(question.id, "boundary", 1.0))
    near = find_near_duplicates(
        [question.text for question in questions], threshold=_NEAR_SIMILARITY
    )
    return findings + [
        LeakageFinding(
            questions[duplicate.index].id,
            "near-duplicate",
            duplicate.similarity,
            questions[duplicate.kept].id,
        )
        for duplicate in near
    ]


def find_split_overlap(
    choosing: Mapping[str, str], measuring: Mapping[str, str]
) -> list[LeakageFinding]:
    """Return test questions that are near duplicates of tuning questions; texts by id."""
    names = [*choosing, *measuring]
    texts = [*choosing.values(), *measuring.values()]
    near = find_near_duplicates(texts, threshold=_NEAR_SIMILARITY)
    return [
        LeakageFinding(
            names[duplicate.index], "crossing", duplicate.similarity, names[duplicate.kept]
        )
        for duplicate in near
        if names[duplicate.index] in measuring and names[duplicate.kept] in choosing
    ]


def tabulate_leakage(leaks: Sequence[LeakageFinding], count: int) -> Table | None:
    """Return the findings by kind, with some ids; None without findings."""
    rows = []
    for kind, description in _DESCRIPTIONS.items():
        ids = [leak.question for leak in leaks if leak.kind == kind]
        if ids:
            rows.append((kind, f"{len(ids)} of {count}", description, ", ".join(ids[:_MAX_SHOWN])))
    if not rows:
        return None
    columns = ("what", "questions", "why it matters", "for instance")
    return Table("what makes this set easier than people's questions", columns, tuple(rows))


def _strip_heading(question: str, headings: Iterable[str]) -> str:
    """Return a question without the headings before it: "Hive - Smoker: What ...?"."""
    head, colon, asked = question.partition(": ")
    known = [f" {normalize_text(heading)} " for heading in headings]
    parts = [f" {normalize_text(part)} " for part in head.split(" - ")]
    is_headed = bool(colon) and all(any(part in text for text in known) for part in parts)
    return asked if is_headed else question


def _copied_share(question: str, passage: str) -> float:
    """Return the share of the question's five-word sequences that occur in the passage."""
    if len(split_words(question)) <= _SHINGLE_WORDS:
        return 0.0  # the only sequence would be the whole question: too short to decide
    return ngram_overlap(passage, question, n=_NGRAM)
