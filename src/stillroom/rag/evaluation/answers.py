"""Answer evaluation: traces, grades, and attribution of failures to stages.

The stages, in the order a question passes them: ``parse`` (no parsed document has the evidence's
words), ``chunk`` (a document has them, no passage holds them whole), ``retrieve`` (a passage does,
it is not within the depth), ``rank`` (within the depth, not among the first k), ``rerank`` (among
them until the reranker), ``show`` (among them, left out of the prompt), ``read`` (shown, and the
answer is wrong all the same), ``cite`` (the answer is right and cites no passage that holds the
evidence). Of several pieces of evidence the one that came furthest counts.

Knows no files; ``reading_job`` runs it over a question set.

A judge's verdicts are remembered by what was asked, so that a killed evaluation asks nothing twice.
Knows one question at a time; ``reading_job`` gathers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from stillroom.evaluate.judges import BinaryJudge, JudgeResult
from stillroom.evaluate.metrics.answers import (
    CitedStatement,
    EntailmentCheck,
    best_exact_match,
    best_f1,
    citation_scores,
    contains_answer,
    context_precision,
    faithfulness,
    noise_sensitivity,
    quote_exactness,
    summarize_shares,
)
from stillroom.provenance import digest_json
from stillroom.rag.evaluation.retrieval import EvidenceLocation, search_query
from stillroom.rag.generation.answer import ask
from stillroom.rag.generation.prompt import render_prompt
from stillroom.rag.index.searcher import Index
from stillroom.rag.model_calls import generate_texts, quote_text
from stillroom.rag.retrieval.pipeline import retrieve_with_parents
from stillroom.rag.types import get_readable_text
from stillroom.records import Hit, Prompt
from stillroom.text.language import split_sentences
from stillroom.text.unicode import normalize_text

if TYPE_CHECKING:
    from stillroom.evaluate import Metric
    from stillroom.evaluate.qa.questions import JudgedQuestion
    from stillroom.models import TextModel
    from stillroom.rag.interfaces import GroundednessChecker
    from stillroom.rag.retrieval.pipeline import RetrievalPipeline
    from stillroom.records import Passage, Sampling

__all__ = [
    "MEASURES",
    "STAGES",
    "AnswerGrader",
    "AnswerTrace",
    "Grades",
    "IndexAnswerer",
    "ShownPassage",
    "Stage",
    "VerdictCache",
    "attribute_failure",
    "contains_evidence",
    "grade_answer",
    "measure_judge_control",
    "open_answerer",
    "run_question",
]


Stage = Literal["", "parse", "chunk", "retrieve", "rank", "rerank", "show", "read", "cite"]


STAGES: tuple[Stage, ...] = (
    "parse",
    "chunk",
    "retrieve",
    "rank",
    "rerank",
    "show",
    "read",
    "cite",
)


_MARK = re.compile(r"\s*\[\d{1,3}\]")


@dataclass(frozen=True, slots=True)
class ShownPassage:
    """A passage as the model was shown it, which may be wider than the one that was found."""

    id: str
    document_id: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class AnswerTrace:
    """What came of one question by one way.

    ``first`` and ``ranked`` are the ids of the hits before and after the reranker; ``statements``
    are the answer's sentences as ``ask`` judged them; ``seconds`` is wall clock of search and
    reading, ``search_seconds`` of the search alone, done once more for the deeper ranking.
    """

    text: str
    abstained: bool
    finish_reason: str
    first: tuple[str, ...]
    ranked: tuple[str, ...]
    shown: tuple[ShownPassage, ...]
    statements: tuple[Mapping[str, Any], ...]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    search_seconds: float
    removed_citations: int = 0
    notices: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AnswerTrace:
        """Read what ``to_json`` wrote."""
        lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        shown = tuple(ShownPassage(**one) for one in data["shown"])
        return cls(**{**data, **lists, "shown": shown})

    @property
    def plain(self) -> str:
        """The answer without citation marks."""
        return _MARK.sub("", self.text)

    def claims(self) -> list[CitedStatement]:
        """Return the sentences that claim something, with the texts of what they cite."""
        found = []
        for one in self.statements:
            if one["status"] == "no-claim":
                continue
            sentence = _MARK.sub("", self.text[one["start"] : one["end"]]).strip()
            cited = tuple(self.shown[number - 1].text for number in one["cited"])
            found.append(CitedStatement(sentence, cited))
        return found

    def cited(self) -> list[ShownPassage]:
        """Return the passages that the answer cites."""
        numbers = {number for one in self.statements for number in one["cited"]}
        return [self.shown[number - 1] for number in sorted(numbers)]


def run_question(
    index: Index,
    model: TextModel,
    way: RetrievalPipeline,
    question: JudgedQuestion,
    *,
    k: int,
    depth: int,
    sampling: Sampling,
) -> AnswerTrace:
    """Search for a question as deep as is judged, then answer it from the first ``k``.

    Args:
        index: Open.
        model: What answers, and what transforms and rerankers ask.
        way: How passages are found.
        question: What is asked.
        k: How many passages are shown.
        depth: How many hits are judged.
        sampling: How the answer is drawn.
    """
    found = search_query(index, way, question.text, unit="passage", depth=depth, model=model)
    begun = time.perf_counter()
    answer = ask(
        index,
        model,
        question.text,
        k=k,
        retriever=way.retriever,
        reranker=way.reranker,
        transform=way.transform,
        answering=way.answering or "direct",
        unsupported=way.unsupported,
        sampling=sampling,
    )
    seconds = time.perf_counter() - begun
    details = answer.details
    return AnswerTrace(
        answer.completion.text,
        bool(details["abstained"]),
        answer.completion.finish_reason,
        found.first,
        found.ranked,
        tuple(_describe(hit.passage) for hit in answer.hits),
        tuple(details["statements"]),
        answer.completion.prompt_tokens or int(details["prompt_tokens"]),
        answer.completion.completion_tokens,
        seconds,
        found.seconds,
        int(details["removed_citations"]),
        tuple(dict.fromkeys([*found.notices, *details["notices"]])),
    )


def contains_evidence(shown: ShownPassage, place: EvidenceLocation) -> bool:
    """Return whether a shown passage holds a piece of evidence.

    It does if it is one of the passages that hold it, lies around one (a parent, neighbours joined
    on), or has the quotation in its text.
    """
    if shown.id in place.passages:
        return True
    if any(
        document == shown.document_id and shown.start <= start and end <= shown.end
        for document, start, end in place.spans
    ):
        return True
    if not place.quotes:
        return False
    text = f" {normalize_text(shown.text)} "
    return any(f" {quote} " in text for quote in place.quotes)


def attribute_failure(
    reading: AnswerTrace, places: Sequence[EvidenceLocation], *, is_right: bool, k: int
) -> Stage:
    """Return the stage that went wrong; an empty one where nothing did.

    Args:
        reading: What came of the question.
        places: Where its evidence stands; none for a question without an answer.
        is_right: Whether the answer is.
        k: How many passages were to be shown.
    """
    if is_right:
        held = [place for place in places if place.passages]
        cited = [
            one for one in reading.cited() if any(contains_evidence(one, place) for place in held)
        ]
        return "cite" if held and not cited else ""
    if not places:
        return "read"
    reached = [_find_lost_stage(reading, place, k) for place in places]
    return max(reached, key=STAGES.index)


def _find_lost_stage(reading: AnswerTrace, place: EvidenceLocation, k: int) -> Stage:
    """Return the stage at which one piece of evidence was lost; ``read`` where it was shown."""
    if any(contains_evidence(one, place) for one in reading.shown):
        return "read"
    if not place.passages:
        return "chunk" if place.in_documents else "parse"
    if place.passages & set(reading.ranked[:k]):
        return "show"
    if place.passages & set(reading.first[:k]):
        return "rerank"
    if place.passages & {*reading.first, *reading.ranked}:
        return "rank"
    return "retrieve"


def _describe(passage: Passage) -> ShownPassage:
    return ShownPassage(
        passage.id, passage.document_id, passage.start, passage.end, get_readable_text(passage)
    )


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


_CORRECT_F1 = 0.5


_GENERATED_QUESTIONS = 3


_ANSWER_TOKENS = 160


_MIN_QUOTATIONS = 2


Grades = Mapping[str, float | None]


class VerdictCache(Protocol):
    """Where verdicts are kept by key: a journal, or whatever remembers."""

    def get(self, key: str, default: object = None) -> object:
        """Return a verdict's row, or the default."""

    def put(self, key: str, value: object) -> None:
        """Keep a verdict's row."""


@dataclass(slots=True)
class AnswerGrader:
    """What grades: an index and a checker, a judge if there is one, and what it has said.

    ``used`` are all verdicts that figures stand on, asked now or before; ``control`` is how often
    the judge knew a quotation's own passage.
    """

    index: Index
    judge: BinaryJudge | None
    checker: GroundednessChecker
    shelf: VerdictCache
    used: MutableMapping[str, JudgeResult]
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

    def is_right(self, question: JudgedQuestion, answer: str) -> JudgeResult | None:
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
            kept = generate_texts(
                self.judge.model,
                f"Write {_GENERATED_QUESTIONS} questions that the text below answers.\n\n"
                f"Text: {quote_text(answer)}",
                most=_GENERATED_QUESTIONS,
                max_new_tokens=_ANSWER_TOKENS,
                method="answer relevance",
            )
            self.shelf.put(key, kept)
        return [str(one) for one in kept] if isinstance(kept, list) and kept else None

    def _decide(self, asked: str) -> JudgeResult:
        assert self.judge is not None  # noqa: S101  # callers have looked
        key = digest_json([self.judge.fingerprint, asked])
        kept = self.shelf.get(key)
        if not isinstance(kept, list):
            said = self.judge.ask(asked)
            kept = [said.value, said.retries, said.prompt_tokens, said.completion_tokens]
            self.shelf.put(key, kept)
        self.used[key] = JudgeResult(*kept)
        return self.used[key]


def measure_judge_control(
    bench: AnswerGrader, quotations: Sequence[tuple[str, str]], *, seed: int = 0
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
    if bench.judge is None or len(quotations) < _MIN_QUOTATIONS:
        return None
    right: dict[str, float | None] = {}
    for at, (quote, text) in enumerate(quotations):
        other = quotations[(at + 1) % len(quotations)][1]
        for is_own, shown in ((True, text), (False, other)):
            if is_own or not contains_answer(shown, [quote]):
                said = bench.supports(quote, [shown])
                right[f"{at}/{is_own}"] = None if said is None else float(said is is_own)
    return summarize_shares(right, "judge/control_accuracy", seed=seed)


def grade_answer(
    reading: AnswerTrace,
    question: JudgedQuestion,
    places: Sequence[EvidenceLocation],
    bench: AnswerGrader,
) -> tuple[dict[str, float | None], JudgeResult | None]:
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
        grades["right"] = _is_correct(reading, question, f1, verdict)
        grades.update(_grade_context(reading, question, places, shown, bench))
    else:
        grades["right"] = float(reading.abstained)
    if not reading.abstained:
        grades.update(_grade_claims(reading, question, shown, bench))
    if question.is_answerable:
        grades["answer_relevance"] = _measure_relevance(reading, question, bench)
    return grades, verdict


def _is_correct(
    reading: AnswerTrace, question: JudgedQuestion, f1: float, verdict: JudgeResult | None
) -> float | None:
    if reading.abstained:
        return 0.0
    if verdict is not None:
        return None if verdict.is_yes is None else float(verdict.is_yes)
    return float(f1 >= _CORRECT_F1 or contains_answer(reading.plain, question.answers))


def _grade_claims(
    reading: AnswerTrace,
    question: JudgedQuestion,
    shown: Sequence[str],
    bench: AnswerGrader,
) -> dict[str, float | None]:
    claims = reading.claims()
    supports: EntailmentCheck = bench.supports
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
    reading: AnswerTrace,
    question: JudgedQuestion,
    places: Sequence[EvidenceLocation],
    shown: Sequence[str],
    bench: AnswerGrader,
) -> dict[str, float | None]:
    """Grade what was shown by the evidence, or where none is named by the judge."""
    if question.evidence:
        found = [any(contains_evidence(one, place) for one in reading.shown) for place in places]
        relevant = [any(contains_evidence(one, place) for place in places) for one in reading.shown]
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


def _measure_relevance(
    reading: AnswerTrace, question: JudgedQuestion, bench: AnswerGrader
) -> float | None:
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


class IndexAnswerer:
    """Answers evaluation's questions from one open index with the default retriever."""

    def __init__(self, index: Index) -> None:
        """Answer from ``index``."""
        self.index = index

    def retrieve(self, query: str, k: int) -> list[Hit]:
        """Return the ``k`` best passages as they are read, best first, ranks from 1."""
        return retrieve_with_parents(self.index, query, k)

    def prompt(self, question: str, hits: Sequence[Hit]) -> Prompt:
        """Return what a model is given to answer the question from the hits."""
        return render_prompt(question, hits)


def open_answerer(path: Path) -> IndexAnswerer:
    """Open the index at ``path``; the entry point ``rag`` of ``stillroom.answerers``."""
    return IndexAnswerer(Index.open(path))
