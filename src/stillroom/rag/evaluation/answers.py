"""RAG answer evaluation (``grade_answer``): LLM judge or token F1, and the stage that failed.

The stages, in the order of processing: ``parse`` (no parsed document has the evidence's words),
``chunk`` (a document has them, but no passage contains them entirely), ``retrieve`` (a passage
does, but is not within the depth), ``rank`` (within the depth, but not among the first k),
``rerank`` (among them before the reranker), ``show`` (among them, but omitted from the prompt),
``read`` (shown, but the answer is wrong), ``cite`` (the answer is right, but cites no passage with
the evidence). With several pieces of evidence, the one that came furthest counts.

Verdicts of a judge are cached by prompt, so that a resumed evaluation repeats no call. This module
handles one question at a time; ``answer_job`` runs it over a question set.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

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
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.types import get_readable_text
from stillroom.records import Hit, Prompt
from stillroom.text.language import split_sentences
from stillroom.text.unicode import normalize_text

if TYPE_CHECKING:
    from stillroom.evaluate import Metric
    from stillroom.evaluate.qa.questions import JudgedQuestion
    from stillroom.jobs.journal import Journal
    from stillroom.models import TextModel
    from stillroom.rag.groundedness.score import SourceTexts
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
    "attribute_failure",
    "contains_evidence",
    "find_probability",
    "grade_answer",
    "measure_judge_control",
    "open_answerer",
    "run_question",
]


Stage = Literal["", "parse", "chunk", "retrieve", "rank", "rerank", "show", "read", "cite"]

STAGES: tuple[Stage, ...] = get_args(Stage)[1:]

_HELD_TEXTS = 16
"""Sets of texts that stay prepared: those of one question and its citations."""
_MARK = re.compile(r"\s*\[\d{1,3}\]")


@dataclass(frozen=True, slots=True)
class ShownPassage:
    """A passage as shown to the model, which may be larger than the retrieved one."""

    id: str
    document_id: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class AnswerTrace:
    """The result of one question with one pipeline.

    ``first`` and ``ranked`` are the ids of the hits before and after the reranker; ``statements``
    are the answer's sentences as checked by ``ask``; ``seconds`` is the wall time of search and
    generation, ``cpu_seconds`` that of all cores, ``search_seconds`` the wall time of the search
    alone, repeated for the deeper ranking; ``quotes`` is the number of quoted sentences and
    ``probability`` that the best of them answers.
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
    cpu_seconds: float = 0.0
    quotes: int = 0
    probability: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AnswerTrace:
        """Parse the output of ``to_json``."""
        lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        shown = tuple(ShownPassage(**passage) for passage in data["shown"])
        return cls(**{**data, **lists, "shown": shown})

    @property
    def plain(self) -> str:
        """The answer without citations."""
        return _MARK.sub("", self.text)

    def cut_to_first_quote(self) -> AnswerTrace:
        """Return the answer up to its first citation: what a reader of it sees first."""
        return replace(self, text=_MARK.split(self.text, maxsplit=1)[0])

    def claims(self) -> list[CitedStatement]:
        """Return the sentences that make a claim, with the texts of the cited passages."""
        claims = []
        for statement in self.statements:
            if statement["status"] == "no-claim":
                continue
            sentence = _MARK.sub("", self.text[statement["start"] : statement["end"]]).strip()
            cited = tuple(self.shown[number - 1].text for number in statement["cited"])
            claims.append(CitedStatement(sentence, cited))
        return claims

    def cited(self) -> list[ShownPassage]:
        """Return the cited passages."""
        numbers = {number for statement in self.statements for number in statement["cited"]}
        return [self.shown[number - 1] for number in sorted(numbers)]


def run_question(
    index: Index,
    model: TextModel,
    pipeline: RetrievalPipeline,
    question: JudgedQuestion,
    *,
    k: int,
    depth: int,
    sampling: Sampling,
) -> AnswerTrace:
    """Search for a question to the judged depth, then answer it from the first ``k`` passages.

    ``k`` passages are shown; ``depth`` hits are judged. The model is called by transforms and
    rerankers, too.
    """
    result = search_query(index, pipeline, question.text, unit="passage", depth=depth, model=model)
    started, started_cpu = time.perf_counter(), time.process_time()
    answer = ask(
        index,
        model,
        question.text,
        k=k,
        sampling=sampling,
        **pipeline.to_answer_settings(),
    )
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    details = answer.details
    quotes = () if details["abstained"] else details.get("quotes", ())
    return AnswerTrace(
        answer.completion.text,
        bool(details["abstained"]),
        answer.completion.finish_reason,
        result.first,
        result.ranked,
        tuple(_describe(hit.passage) for hit in answer.hits),
        tuple(details["statements"]),
        answer.completion.prompt_tokens or int(details["prompt_tokens"]),
        answer.completion.completion_tokens,
        seconds,
        result.seconds,
        int(details["removed_citations"]),
        tuple(dict.fromkeys([*result.notices, *details["notices"]])),
        cpu_seconds,
        sum(len(list(split_sentences(quote["text"]))) for quote in quotes),
        find_probability(details),
    )


def find_probability(details: Mapping[str, Any]) -> float:
    """Return the probability that the best sentence answers, from an answer's details; else 0."""
    return max((float(step.get("probability", 0.0)) for step in details["trace"]), default=0.0)


def contains_evidence(shown: ShownPassage, location: EvidenceLocation) -> bool:
    """Return whether a shown passage contains a piece of evidence.

    True if it is one of the passages with the evidence, encloses one (a parent, merged neighbors),
    or has the quotation in its text.
    """
    if shown.id in location.passages:
        return True
    if any(
        document == shown.document_id and shown.start <= start and end <= shown.end
        for document, start, end in location.spans
    ):
        return True
    if not location.quotes:
        return False
    text = f" {normalize_text(shown.text)} "
    return any(f" {quote} " in text for quote in location.quotes)


def attribute_failure(
    reading: AnswerTrace, locations: Sequence[EvidenceLocation], *, is_right: bool, k: int
) -> Stage:
    """Return the stage that failed; empty if none did.

    An unanswerable question has no locations.
    """
    if is_right:
        retrievable = [location for location in locations if location.passages]
        cited = [
            passage
            for passage in reading.cited()
            if any(contains_evidence(passage, location) for location in retrievable)
        ]
        return "cite" if retrievable and not cited else ""
    if not locations:
        return "read"
    reached = [_find_lost_stage(reading, location, k) for location in locations]
    return max(reached, key=STAGES.index)


def _find_lost_stage(reading: AnswerTrace, location: EvidenceLocation, k: int) -> Stage:
    """Return the stage at which a piece of evidence was lost; ``read`` if it was shown."""
    if any(contains_evidence(passage, location) for passage in reading.shown):
        return "read"
    if not location.passages:
        return "chunk" if location.in_documents else "parse"
    if location.passages & set(reading.ranked[:k]):
        return "show"
    if location.passages & set(reading.first[:k]):
        return "rerank"
    if location.passages & {*reading.first, *reading.ranked}:
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


@dataclass(slots=True)
class AnswerGrader:
    """Grades answers with an index, a checker, and optionally a judge.

    ``used`` are all verdicts behind the metrics, new or cached; ``control`` is the judge's accuracy
    on quotations. Several metrics ask the same of a checker: ``held`` are the texts that it has
    prepared for the newest questions, ``checked`` its verdicts.
    """

    index: Index
    judge: BinaryJudge | None
    checker: GroundednessChecker
    verdicts: Journal
    used: MutableMapping[str, JudgeResult]
    control: Metric | None = None
    held: dict[tuple[str, ...], SourceTexts] = field(default_factory=dict, repr=False)
    checked: dict[tuple[str, tuple[str, ...]], bool] = field(default_factory=dict, repr=False)

    def supports(self, statement: str, texts: Sequence[str]) -> bool | None:
        """Return whether the texts together support the statement."""
        if self.judge is None:
            return self._check(statement, tuple(texts))
        shown = "\n\n".join(quote_text(text) for text in texts)
        return self._decide(
            f"Texts:\n{shown}\n\nStatement: {quote_text(statement)}\n\n"
            "Do the texts say what the statement says?"
        ).is_yes

    def _check(self, statement: str, texts: tuple[str, ...]) -> bool:
        if (verdict := self.checked.get((statement, texts))) is not None:
            return verdict
        if texts not in self.held:
            if len(self.held) >= _HELD_TEXTS:
                self.held.clear()
            self.held[texts] = self.checker.hold(list(texts), self.index)
        evidence = self.held[texts]
        score = evidence.measure_together(statement, range(1, len(texts) + 1))
        return self.checked.setdefault((statement, texts), score >= evidence.threshold)

    def is_right(self, question: JudgedQuestion, answer: str) -> JudgeResult | None:
        """Return the judge's verdict on an answer; None without a judge."""
        if self.judge is None:
            return None
        accepted = " / ".join(quote_text(answer_text) for answer_text in question.answers)
        return self._decide(
            f"Question: {quote_text(question.text)}\nRight answer: {accepted}\n"
            f"Given answer: {quote_text(answer)}\n\n"
            "Does the given answer say the same as the right one?"
        )

    def is_relevant(self, question: str, text: str) -> bool | None:
        """Return whether a text helps to answer a question; None without a judge."""
        if self.judge is None:
            return None
        return self._decide(
            f"Text:\n{quote_text(text)}\n\nQuestion: {quote_text(question)}\n\n"
            "Does the text hold what is needed to answer the question?"
        ).is_yes

    def questions_of(self, answer: str) -> list[str] | None:
        """Return questions that an answer would answer; None if none could be parsed."""
        if self.judge is None:
            return None
        key = digest_json(["questions", self.judge.fingerprint, answer])
        questions = self.verdicts.get(key)
        if questions is None:
            questions = generate_texts(
                self.judge.model,
                f"Write {_GENERATED_QUESTIONS} questions that the text below answers.\n\n"
                f"Text: {quote_text(answer)}",
                most=_GENERATED_QUESTIONS,
                max_new_tokens=_ANSWER_TOKENS,
                method="answer relevance",
            )
            self.verdicts.put(key, questions)
        return (
            [str(item) for item in questions] if isinstance(questions, list) and questions else None
        )

    def _decide(self, prompt: str) -> JudgeResult:
        assert self.judge is not None  # noqa: S101  # callers have looked
        key = digest_json([self.judge.fingerprint, prompt])
        row = self.verdicts.get(key)
        if not isinstance(row, list):
            result = self.judge.ask(prompt)
            row = [result.value, result.retries, result.prompt_tokens, result.completion_tokens]
            self.verdicts.put(key, row)
        self.used[key] = JudgeResult(*row)
        return self.used[key]


def measure_judge_control(
    grader: AnswerGrader, quotations: Sequence[tuple[str, str]], *, seed: int = 0
) -> Metric | None:
    """Return the judge's accuracy in matching quotations to their passages; 0.5 is chance.

    Each quotation is presented with the passage that contains it and with the next one's, unless
    that contains it, too. Requires no labels; a judge at chance level is unusable.

    Returns:
        None without a judge, or with fewer than two quotations.
    """
    if grader.judge is None or len(quotations) < _MIN_QUOTATIONS:
        return None
    scores: dict[str, float | None] = {}
    for i, (quote, text) in enumerate(quotations):
        other_text = quotations[(i + 1) % len(quotations)][1]
        for is_own, shown in ((True, text), (False, other_text)):
            if is_own or not contains_answer(shown, [quote]):
                supported = grader.supports(quote, [shown])
                scores[f"{i}/{is_own}"] = None if supported is None else float(supported is is_own)
    return summarize_shares(scores, "judge/control_accuracy", seed=seed)


def grade_answer(
    reading: AnswerTrace,
    question: JudgedQuestion,
    locations: Sequence[EvidenceLocation],
    grader: AnswerGrader,
) -> tuple[dict[str, float | None], JudgeResult | None]:
    """Return all measures of an answer, None if undefined, and the judge's verdict.

    Without a judge, an answer is right if it contains an accepted answer, or its F1 is at least one
    half. The right answer to an unanswerable question is an abstention.
    """
    shown = [passage.text for passage in reading.shown]
    grades: dict[str, float | None] = dict.fromkeys(MEASURES)
    plain = reading.plain
    verdict = None
    if question.is_answerable:
        f1 = grades["f1"] = best_f1(plain, question.answers)
        grades["em"] = best_exact_match(plain, question.answers)
        verdict = None if reading.abstained else grader.is_right(question, plain)
        grades["right"] = _is_correct(reading, question, f1, verdict)
        grades.update(_grade_context(reading, question, locations, shown, grader))
    else:
        grades["right"] = float(reading.abstained)
    if not reading.abstained:
        grades.update(_grade_claims(reading, question, shown, grader))
    if question.is_answerable:
        grades["answer_relevance"] = _measure_relevance(reading, question, grader)
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
    grader: AnswerGrader,
) -> dict[str, float | None]:
    claims = reading.claims()
    supports: EntailmentCheck = grader.supports
    sentences = [claim.text for claim in claims]
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
    locations: Sequence[EvidenceLocation],
    shown: Sequence[str],
    grader: AnswerGrader,
) -> dict[str, float | None]:
    """Grade the shown passages by the evidence, or by the judge if no evidence is given."""
    if question.evidence:
        contained = [
            any(contains_evidence(part, location) for part in reading.shown)
            for location in locations
        ]
        relevant = [
            any(contains_evidence(part, location) for location in locations)
            for part in reading.shown
        ]
        return {
            "context_precision": context_precision(relevant),
            "context_recall": sum(contained) / len(contained),
        }
    verdicts = [grader.is_relevant(question.text, text) for text in shown]
    if grader.judge is None or any(verdict is None for verdict in verdicts):
        return {}
    reference = question.answers[0]
    sentences = [reference[start:end] for start, end in split_sentences(reference)]
    return {
        "context_precision": context_precision([bool(verdict) for verdict in verdicts]),
        "context_recall": faithfulness(sentences, shown, grader.supports),
    }


def _measure_relevance(
    reading: AnswerTrace, question: JudgedQuestion, grader: AnswerGrader
) -> float | None:
    """Return the mean cosine of the question and those generated from the answer; 0 if abstained.

    Source: Es et al. 2023, arXiv:2309.15217, section 3.
    """
    if grader.judge is None:
        return None
    if reading.abstained:
        return 0.0
    questions = grader.questions_of(reading.plain)
    if not questions:
        return None
    vectors = grader.index.embedder.embed([question.text, *questions], kind="query")
    return float(np.mean(vectors[1:] @ vectors[0]))


class IndexAnswerer:
    """Answers questions of an evaluation from one open index with the default retriever."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def retrieve(self, query: str, k: int) -> list[Hit]:
        """Return the ``k`` best passages as shown to the model, best first, ranks from 1."""
        return retrieve(self.index, query, k)

    def prompt(self, question: str, hits: Sequence[Hit]) -> Prompt:
        """Return the prompt that answers the question from the hits."""
        return render_prompt(question, hits)


def open_answerer(path: Path) -> IndexAnswerer:
    """Open the index at ``path``; the entry point ``rag`` of ``stillroom.answerers``."""
    return IndexAnswerer(Index.open(path))
