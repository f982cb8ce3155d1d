"""Training examples of a sentence reader: questions with the passages that an index returns.

A sentence answers a question if it overlaps the question's evidence and, where short answers are
given, holds one of them. Retrieved passages without such a sentence are the negatives that the
reader meets when it answers; with a share of the questions all answering passages are removed, so
that the reader learns to give no answer.

Source: Zhang et al. 2024, "RAFT", arXiv:2403.10131 (questions without their passage among
distractors). Differs: distractors are retrieved, not drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.evaluate.qa.questions import JudgedQuestion
from stillroom.rag.answer_selection.encoding import Span, find_sentences
from stillroom.records import Hit
from stillroom.text.unicode import normalize_text

__all__ = ["ReaderExample", "ReaderPassage", "label_passages", "make_examples", "read_passage"]


@dataclass(frozen=True, slots=True)
class ReaderPassage:
    """A passage as the reader sees it; ``answers`` marks the sentences that answer."""

    title: str
    text: str
    sentences: tuple[Span, ...]
    answers: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class ReaderExample:
    """A question with its passages in the order in which they are read."""

    id: str
    question: str
    passages: tuple[ReaderPassage, ...]

    @property
    def is_answerable(self) -> bool:
        """Whether a sentence of the passages answers."""
        return any(any(passage.answers) for passage in self.passages)


def read_passage(hit: Hit) -> ReaderPassage:
    """Return a hit's title, text and sentences, without headings."""
    text = hit.passage.text
    headings = (*hit.passage.headings, hit.passage.title)
    title = " > ".join(
        dict.fromkeys([part for part in (hit.passage.title, *hit.passage.headings) if part])
    )
    return ReaderPassage(title, text, tuple(find_sentences(text, headings)))


def label_passages(
    question: JudgedQuestion, passages: Iterable[ReaderPassage]
) -> list[ReaderPassage]:
    """Return the passages with the sentences marked that answer the question."""
    quotes = [_words(evidence.quote) for evidence in question.evidence if evidence.quote]
    accepted = [_words(answer) for answer in question.answers]
    return [
        ReaderPassage(
            passage.title,
            passage.text,
            passage.sentences,
            tuple(
                _answers(_words(passage.text[start:end]), quotes, accepted)
                for start, end in passage.sentences
            ),
        )
        for passage in passages
    ]


def make_examples(
    questions: Sequence[JudgedQuestion],
    hits: Sequence[Sequence[Hit]],
    *,
    k: int,
    unanswerable: float,
    seed: int,
) -> list[ReaderExample]:
    """Return the example of each question.

    Args:
        questions: Questions with evidence.
        hits: Retrieved hits of each question, more than ``k`` so that passages can be removed.
        k: Passages of an example.
        unanswerable: Share of questions whose answering passages are removed.
        seed: Seed of which questions those are, and of the order of passages.
    """
    rng = np.random.default_rng(seed)
    examples = []
    for question, found in zip(questions, hits, strict=True):
        labeled = label_passages(question, map(read_passage, found))
        if rng.random() < unanswerable:
            labeled = [passage for passage in labeled if not any(passage.answers)]
        selected = labeled[:k]
        order = rng.permutation(len(selected))
        examples.append(
            ReaderExample(question.id, question.text, tuple(selected[number] for number in order))
        )
    return examples


def _words(text: str) -> str:
    return f" {normalize_text(text)} "


def _answers(sentence: str, quotes: Sequence[str], accepted: Sequence[str]) -> bool:
    """Return whether a sentence overlaps the evidence and holds an answer, if one is short."""
    if not any(sentence in quote or quote in sentence for quote in quotes):
        return False
    return (
        not accepted
        or any(answer in sentence for answer in accepted)
        or any(quote in answer for quote in quotes for answer in accepted)
    )
