"""Grading a reading: every measure of one answer, by shared words or by a judge.

A judge's verdicts are remembered by what was asked, so that a killed evaluation asks nothing twice.
Knows one question at a time; ``reading_job`` gathers.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from stillroom.evaluate.generation import (
    Supports,
    best_exact_match,
    best_f1,
    citation_scores,
    context_precision,
    faithfulness,
    holds_answer,
    measure_shares,
    noise_sensitivity,
    quote_exactness,
)
from stillroom.evaluate.judging import ModelJudge, Verdict
from stillroom.provenance import digest_json
from stillroom.rag.drafting import ask_for_texts
from stillroom.rag.measuring.reading import Reading, holds
from stillroom.rag.prompting import quote_text
from stillroom.text.sentences import split_sentences

if TYPE_CHECKING:
    from stillroom.evaluate import Metric
    from stillroom.evaluate.question_sets import JudgedQuestion
    from stillroom.rag.index import Index
    from stillroom.rag.measuring.locating import Place
    from stillroom.rag.method import Checker

__all__ = ["MEASURES", "Bench", "Grades", "VerdictShelf", "control_judge", "grade"]

MEASURES = (
    "right",
    "f1",
    "em",
    "faithfulness",
    "citation_recall",
    "citation_precision",
    "quote_exactness",
    "context_precision",
    "context_recall",
    "noise_sensitivity",
    "answer_relevance",
)
_RIGHT_F1 = 0.5
_QUESTIONS = 3
_ANSWER_TOKENS = 160
_FEWEST_QUOTATIONS = 2

Grades = Mapping[str, float | None]


class VerdictShelf(Protocol):
    """Where verdicts are kept by key: a journal, or whatever remembers."""

    def get(self, key: str, default: object = None) -> object:
        """Return a verdict's row, or the default."""

    def put(self, key: str, value: object) -> None:
        """Keep a verdict's row."""


@dataclass(slots=True)
class Bench:
    """What grades: an index and a checker, a judge if there is one, and what it has said.

    ``used`` are all verdicts that figures stand on, asked now or before; ``control`` is how often
    the judge knew a quotation's own passage.
    """

    index: Index
    judge: ModelJudge | None
    checker: Checker
    shelf: VerdictShelf
    used: MutableMapping[str, Verdict]
    control: Metric | None = None

    def supports(self, statement: str, texts: Sequence[str]) -> bool | None:
        """Return whether the texts, together, say the statement."""
        if self.judge is None:
            evidence = self.checker.hold(list(texts), self.index)
            numbers = range(1, len(texts) + 1)
            return evidence.measure_together(statement, numbers) >= evidence.threshold
        shown = "\n\n".join(quote_text(text) for text in texts)
        return self._decide(
            f"Texts:\n{shown}\n\nStatement: {quote_text(statement)}\n\n"
            "Do the texts say what the statement says?"
        ).is_yes

    def is_right(self, question: JudgedQuestion, answer: str) -> Verdict | None:
        """Return the judge's verdict on an answer; None where there is no judge."""
        if self.judge is None:
            return None
        accepted = " / ".join(quote_text(one) for one in question.answers)
        return self._decide(
            f"Question: {quote_text(question.text)}\nRight answer: {accepted}\n"
            f"Given answer: {quote_text(answer)}\n\n"
            "Does the given answer say the same as the right one?"
        )

    def is_relevant(self, question: str, text: str) -> bool | None:
        """Return whether a text helps to answer a question; None where there is no judge."""
        if self.judge is None:
            return None
        return self._decide(
            f"Text:\n{quote_text(text)}\n\nQuestion: {quote_text(question)}\n\n"
            "Does the text hold what is needed to answer the question?"
        ).is_yes

    def questions_of(self, answer: str) -> list[str] | None:
        """Return questions that an answer would answer; None where none could be read."""
        if self.judge is None:
            return None
        key = digest_json(["questions", self.judge.fingerprint, answer])
        kept = self.shelf.get(key)
        if kept is None:
            kept = ask_for_texts(
                self.judge.model,
                f"Write {_QUESTIONS} questions that the text below answers.\n\n"
                f"Text: {quote_text(answer)}",
                most=_QUESTIONS,
                max_new_tokens=_ANSWER_TOKENS,
                method="answer relevance",
            )
            self.shelf.put(key, kept)
        return [str(one) for one in kept] if isinstance(kept, list) and kept else None

    def _decide(self, asked: str) -> Verdict:
        assert self.judge is not None  # noqa: S101  # callers have looked
        key = digest_json([self.judge.fingerprint, asked])
        kept = self.shelf.get(key)
        if not isinstance(kept, list):
            said = self.judge.ask(asked)
            kept = [said.value, said.retries, said.prompt_tokens, said.completion_tokens]
            self.shelf.put(key, kept)
        self.used[key] = Verdict(*kept)
        return self.used[key]


def control_judge(
    bench: Bench, quotations: Sequence[tuple[str, str]], *, seed: int = 0
) -> Metric | None:
    """Return how often the judge knows a quotation's own passage from another's; .5 is chance.

    Each quotation is put to it twice: with the passage that it stands in, and with the next one's,
    unless that has its words, too. Needs nobody's labels; a judge that fails here judges nothing.

    Args:
        bench: With a judge.
        quotations: Each with the text of the passage that it stands in.
        seed: Of the interval, over verdicts.

    Returns:
        None where there is no judge, or there are fewer than two quotations to tell apart.
    """
    if bench.judge is None or len(quotations) < _FEWEST_QUOTATIONS:
        return None
    right: dict[str, float | None] = {}
    for at, (quote, text) in enumerate(quotations):
        other = quotations[(at + 1) % len(quotations)][1]
        for is_own, shown in ((True, text), (False, other)):
            if is_own or not holds_answer(shown, [quote]):
                said = bench.supports(quote, [shown])
                right[f"{at}/{is_own}"] = None if said is None else float(said is is_own)
    return measure_shares(right, "judge/control_accuracy", seed=seed)


def grade(
    reading: Reading,
    question: JudgedQuestion,
    places: Sequence[Place],
    bench: Bench,
) -> tuple[dict[str, float | None], Verdict | None]:
    """Return every measure of one reading, None where it has none, and the judge's verdict.

    Without a judge an answer is right where its words hold an accepted one whole, or its F1 reaches
    one half. A question without an answer is answered rightly by saying so.

    Args:
        reading: What came of the question.
        question: With its accepted answers.
        places: Where its evidence stands.
        bench: What grades.
    """
    shown = [one.text for one in reading.shown]
    grades: dict[str, float | None] = dict.fromkeys(MEASURES)
    plain = reading.plain
    verdict = None
    if question.is_answerable:
        f1 = grades["f1"] = best_f1(plain, question.answers)
        grades["em"] = best_exact_match(plain, question.answers)
        verdict = None if reading.abstained else bench.is_right(question, plain)
        grades["right"] = _is_right(reading, question, f1, verdict)
        grades.update(_grade_context(reading, question, places, shown, bench))
    else:
        grades["right"] = float(reading.abstained)
    if not reading.abstained:
        grades.update(_grade_claims(reading, question, shown, bench))
    if question.is_answerable:
        grades["answer_relevance"] = _relevance(reading, question, bench)
    return grades, verdict


def _is_right(
    reading: Reading, question: JudgedQuestion, f1: float, verdict: Verdict | None
) -> float | None:
    if reading.abstained:
        return 0.0
    if verdict is not None:
        return None if verdict.is_yes is None else float(verdict.is_yes)
    return float(f1 >= _RIGHT_F1 or holds_answer(reading.plain, question.answers))


def _grade_claims(
    reading: Reading,
    question: JudgedQuestion,
    shown: Sequence[str],
    bench: Bench,
) -> dict[str, float | None]:
    claims = reading.claims()
    supports: Supports = bench.supports
    sentences = [one.text for one in claims]
    recall, precision = citation_scores(claims, supports)
    reference = "\n".join(question.answers)
    noise = noise_sensitivity(sentences, reference, shown, supports) if reference else None
    return {
        "faithfulness": faithfulness(sentences, shown, supports),
        "citation_recall": recall,
        "citation_precision": precision,
        "quote_exactness": quote_exactness(reading.plain, shown),
        "noise_sensitivity": noise,
    }


def _grade_context(
    reading: Reading,
    question: JudgedQuestion,
    places: Sequence[Place],
    shown: Sequence[str],
    bench: Bench,
) -> dict[str, float | None]:
    """Grade what was shown by the evidence, or where none is named by the judge."""
    if question.evidence:
        found = [any(holds(one, place) for one in reading.shown) for place in places]
        relevant = [any(holds(one, place) for place in places) for one in reading.shown]
        return {
            "context_precision": context_precision(relevant),
            "context_recall": sum(found) / len(found),
        }
    verdicts = [bench.is_relevant(question.text, text) for text in shown]
    if bench.judge is None or any(one is None for one in verdicts):
        return {}
    reference = question.answers[0]
    sentences = [reference[start:end] for start, end in split_sentences(reference)]
    return {
        "context_precision": context_precision([bool(one) for one in verdicts]),
        "context_recall": faithfulness(sentences, shown, bench.supports),
    }


def _relevance(reading: Reading, question: JudgedQuestion, bench: Bench) -> float | None:
    """Return the mean cosine of the question and those that the answer answers; 0 if it is none.

    Source: Es et al. 2023, arXiv:2309.15217, section 3.
    """
    if bench.judge is None:
        return None
    if reading.abstained:
        return 0.0
    asked = bench.questions_of(reading.plain)
    if not asked:
        return None
    vectors = bench.index.embedder.embed([question.text, *asked], kind="query")
    return float(np.mean(vectors[1:] @ vectors[0]))
