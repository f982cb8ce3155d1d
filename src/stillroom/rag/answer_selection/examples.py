"""Training examples of a sentence reader (RAFT): passages that answer, and hard negatives.

A sentence answers a question if it overlaps the question's evidence and, where short answers are
given, holds one of them. Retrieved passages without such a sentence are the negatives that the
reader meets when it answers; with a share of the questions all answering passages are removed, so
that the reader learns to give no answer.

Source: Zhang et al. 2024, "RAFT", arXiv:2403.10131 (questions without their passage among
distractors). Differs: distractors are retrieved, not drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stillroom.evaluate.qa.questions import JudgedQuestion, read_question_set
from stillroom.rag.answer_selection.encoding import Span, find_sentences
from stillroom.records import Hit
from stillroom.text.unicode import normalize_text

__all__ = [
    "ReaderExample",
    "ReaderPassage",
    "label_passages",
    "make_examples",
    "read_passage",
    "read_split_questions",
]

_FOREIGN_SHARE = 0.5
_RANDOM_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class ReaderPassage:
    """A passage as the reader sees it.

    ``answers`` marks the sentences that answer; ``short`` is the character span of the short answer
    in the first of them.
    """

    title: str
    text: str
    sentences: tuple[Span, ...]
    answers: tuple[bool, ...] = ()
    short: Span | None = None


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


def read_split_questions(
    paths: Sequence[Path], warn: Callable[[str], None] | None = None
) -> Iterator[tuple[int, JudgedQuestion, bool | None]]:
    """Yield the number of a file, each question of it, and whether its record is held out.

    That is None where the records have no splits. Ids begin with the number of the file.
    ``warn`` receives a line on questions asked more than once.

    Raises:
        DataError: If a file cannot be read.
    """
    for number, path in enumerate(paths):
        every = read_question_set(path, every=True, warn=warn)
        held_out = {question.id for question in read_question_set(path)}
        has_splits = len(held_out) < len(every)
        for question in every:
            is_held_out = question.id in held_out if has_splits else None
            yield number, replace(question, id=f"{number}:{question.id}"), is_held_out


def read_passage(hit: Hit, starts: Collection[int] = ()) -> ReaderPassage:
    """Return a hit's title, text and sentences, without headings, nor those at ``starts`` in it."""
    text = hit.passage.text
    headings = (*hit.passage.headings, hit.passage.title)
    title = " > ".join(
        dict.fromkeys([part for part in (hit.passage.title, *hit.passage.headings) if part])
    )
    return ReaderPassage(title, text, tuple(find_sentences(text, headings, starts)))


def label_passages(
    question: JudgedQuestion, passages: Iterable[ReaderPassage]
) -> list[ReaderPassage]:
    """Return the passages with the sentences marked that answer the question."""
    quotes = [_words(evidence.quote) for evidence in question.evidence if evidence.quote]
    accepted = [_words(answer) for answer in question.answers]
    labeled = []
    for passage in passages:
        answers = tuple(
            _answers(_words(passage.text[start:end]), quotes, accepted)
            for start, end in passage.sentences
        )
        short = _find_short(passage, answers, question.answers)
        labeled.append(replace(passage, answers=answers, short=short))
    return labeled


def _find_short(
    passage: ReaderPassage, answers: Sequence[bool], accepted: Sequence[str]
) -> Span | None:
    """Return the span of the first accepted answer in the first sentence that answers.

    A whole sentence is no short answer.
    """
    for (start, end), is_answer in zip(passage.sentences, answers, strict=True):
        for answer in accepted if is_answer else ():
            found = passage.text.find(answer.strip(), start, end) if answer.strip() else -1
            if found >= 0 and _words(answer) != _words(passage.text[start:end]):
                return found, found + len(answer.strip())
    return None


def make_examples(
    questions: Sequence[JudgedQuestion],
    hits: Sequence[Sequence[Hit]],
    *,
    k: int,
    unanswerable: float,
    renderings: int,
    seed: int,
) -> list[ReaderExample]:
    """Return examples of each question, every one with another choice and order of passages.

    Args:
        questions: Questions with evidence, and some that the documents leave open.
        hits: Retrieved hits of each question, more than ``k`` so that passages can be removed.
        k: Passages of an example.
        unanswerable: Share of examples without the passages that answer; half of them without any
            passage of the documents that answer.
        renderings: Examples of each question.
        seed: Seed of the choice and order of passages.
    """
    rng = np.random.default_rng(seed)
    labeled = [
        label_passages(question, map(read_passage, found))
        for question, found in zip(questions, hits, strict=True)
    ]
    examples = []
    for rendering in range(renderings):
        for question, found, passages in zip(questions, hits, labeled, strict=True):
            documents = [hit.passage.document_id for hit in found]
            selected = _choose(passages, documents, k, unanswerable, rng)
            examples.append(ReaderExample(f"{question.id}#{rendering}", question.text, selected))
    return examples


def _choose(
    passages: Sequence[ReaderPassage],
    documents: Sequence[str],
    k: int,
    unanswerable: float,
    rng: np.random.Generator,
) -> tuple[ReaderPassage, ...]:
    """Return up to k passages in random order: those that answer, if any may, and others."""
    answering = [number for number, passage in enumerate(passages) if any(passage.answers)]
    others = [number for number in range(len(passages)) if number not in answering]
    if rng.random() < unanswerable:
        if rng.random() < _FOREIGN_SHARE:
            named = {documents[number] for number in answering}
            others = [number for number in others if documents[number] not in named] or others
        answering = []
    if rng.random() < _RANDOM_SHARE:
        others = [int(number) for number in rng.permutation(others)]
    chosen = answering[: max(1, k - 1)]
    chosen += others[: k - len(chosen)]
    return tuple(passages[number] for number in rng.permutation(chosen))


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
