"""Closed-book and retrieval-augmented answers of models; scored by ``text.unicode`` (EM, F1).

One model is in memory at a time. Every answer is journaled as it arrives, so that a killed run can
be resumed. Scores are SQuAD's exact match and F1, without citation marks.

The evidence of a record is a passage id and the span of its source. An index with another chunking
has other passages: a hit then counts as the evidence if it holds most of that span.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.evaluate.interfaces import RagSystem
from stillroom.evaluate.metrics.bootstrap import Metric, bootstrap, paired_difference
from stillroom.evaluate.metrics.retrieval import retrieval_metrics
from stillroom.evaluate.qa.questions import Question
from stillroom.jobs import Job
from stillroom.models import TextModel, open_text_model
from stillroom.provenance import digest_json
from stillroom.records import Completion, Hit, Message, Passage, Prompt, Sampling
from stillroom.text.unicode import exact_match, token_f1

if TYPE_CHECKING:
    from stillroom.evaluate.jobs.report import EvaluateRecipe

__all__ = [
    "AnsweredQuestion",
    "ask_models",
    "measure_answers",
    "measure_retrieval",
    "measure_speed",
    "retrieve_all",
]


_CITATION_MARK = re.compile(r"\s*[\[【［]\s*\d+(?:\s*,\s*\d+)*\s*[\]】］]")
_TURN_TOKENS = 8
_MIN_SECONDS = 1e-9
_BLOCK = 8


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """One model's answer to one question, with the passages shown and its scores."""

    question: Question
    model: str
    mode: str
    text: str
    finish_reason: str
    tokens: int
    shown: tuple[Mapping[str, Any], ...]
    not_shown: int
    f1: float
    em: float

    def to_json(self) -> dict[str, Any]:
        """Return a row of answers.jsonl."""
        return {
            "record": self.question.id,
            "question": self.question.text,
            "expected": self.question.answer,
            "model": self.model,
            "mode": self.mode,
            "answer": self.text,
            "finish_reason": self.finish_reason,
            "tokens": self.tokens,
            "f1": self.f1,
            "em": self.em,
            "shown": list(self.shown),
            "not_shown": self.not_shown,
        }


def ask_models(
    recipe: EvaluateRecipe,
    questions: Sequence[Question],
    answerer: RagSystem | None,
    retrieved: Mapping[str, dict[str, Any]],
    job: Job,
) -> list[AnsweredQuestion]:
    """Return every model's answers in order of model, mode and question.

    Passages that do not fit a model's context are dropped from the end, and counted in
    ``not_shown``.
    """
    modes = ("closed", "retrieved") if answerer else ("closed",)
    journal = job.journal("answers")
    keys = [
        (name, mode, question) for name in recipe.models for mode in modes for question in questions
    ]
    done = sum(_journal_key(*key) in journal for key in keys)
    with job.phase("answers", len(keys), "answers", done=done) as progress:
        for name, reference in recipe.models.items():
            todo = [key for key in keys if key[0] == name and _journal_key(*key) not in journal]
            if not todo:
                continue
            model = open_text_model(reference, backend=recipe.backend)
            try:
                for start in range(0, len(todo), _BLOCK):
                    block = todo[start : start + _BLOCK]
                    _ask_model(model, block, recipe, answerer, retrieved, job, progress.advance)
            finally:
                model.close()
    return [_restore_answer(*key, journal[_journal_key(*key)]) for key in keys]


def measure_answers(all_answers: Sequence[AnsweredQuestion], *, seed: int) -> list[Metric]:
    """Return F1 and exact match by model and mode, then differences of F1 from the first model."""
    metrics, first = [], all_answers[0].model
    groups = _group_by_model(all_answers)
    for (model, mode), answers in groups.items():
        for measure in ("f1", "em"):
            values = [getattr(answer, measure) for answer in answers]
            name = f"answers/{model}/{mode}/{measure}"
            metrics.append(bootstrap(values, seed=seed, name=name))
    for (model, mode), answers in groups.items():
        if model != first:
            metrics.append(
                paired_difference(
                    [answer.f1 for answer in answers],
                    [answer.f1 for answer in groups[first, mode]],
                    seed=seed,
                    name=f"answers/{model}/{mode}/f1_minus_{first}",
                )
            )
    return metrics


def measure_speed(models: Iterable[str], job: Job, *, seed: int) -> list[Metric]:
    """Return generated tokens per second by model, including the time to read the prompts.

    The unit of resampling is a block of questions, since these are answered in one batch.
    """
    journal = job.journal("speed")
    keys, metrics = journal.keys(), []
    for model in models:
        blocks = [journal[key] for key in keys if key.startswith(f"{model}/")]
        seconds = [max(block["seconds"], _MIN_SECONDS) for block in blocks]
        rates = [block["tokens"] / spent for block, spent in zip(blocks, seconds, strict=True)]
        name = f"{model}/tokens_per_second"
        metrics.append(bootstrap(rates, weights=seconds, seed=seed, name=name, unit="tokens/s"))
    return metrics


def _ask_model(
    model: TextModel,
    todo: Sequence[tuple[str, str, Question]],
    recipe: EvaluateRecipe,
    answerer: RagSystem | None,
    retrieved: Mapping[str, dict[str, Any]],
    job: Job,
    advance: Callable[[], None],
) -> None:
    """Ask one model a block of questions and journal each answer as it arrives."""
    journal = job.journal("answers")
    prompts, samplings, shown = [], [], []
    for name, mode, question in todo:
        hits = _restore_hits(retrieved[question.id]) if mode == "retrieved" else []
        prompt, fitting = _fit_prompt(
            model, question, hits, answerer if mode == "retrieved" else None, recipe
        )
        prompts.append(prompt)
        shown.append((fitting, len(hits) - len(fitting)))
        samplings.append(_sampling(recipe, _journal_key(name, mode, question)))

    def keep(index: int, completion: Completion) -> None:
        if completion.finish_reason == "cancelled":
            return
        fitting, not_shown = shown[index]
        journal.put(
            _journal_key(*todo[index]),
            {
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "tokens": completion.completion_tokens,
                "shown": [_describe_hit(hit) for hit in fitting],
                "not_shown": not_shown,
            },
        )
        advance()

    started = time.perf_counter()
    completions = model.generate(prompts, samplings, on_done=keep, is_cancelled=job.is_cancelled)
    job.check_cancelled()
    spent = time.perf_counter() - started
    written = sum(completion.completion_tokens for completion in completions)
    job.journal("speed").put(_journal_key(*todo[0]), {"tokens": written, "seconds": spent})


def _fit_prompt(
    model: TextModel,
    question: Question,
    hits: list[Hit],
    answerer: RagSystem | None,
    recipe: EvaluateRecipe,
) -> tuple[Prompt, list[Hit]]:
    """Return the prompt with as many passages as fit into the model's context."""
    if answerer is None:
        return Prompt((Message("user", question.text),)), []
    room = model.context_length - recipe.sampling.max_new_tokens
    while True:
        prompt = answerer.prompt(question.text, hits)
        texts = [message.content for message in prompt.messages] or [prompt.text]
        needed = sum(model.count_tokens(text) + _TURN_TOKENS for text in [*texts, prompt.prefix])
        if needed <= room or not hits:
            return prompt, hits
        hits = hits[:-1]


def _sampling(recipe: EvaluateRecipe, key: str) -> Sampling:
    seed = int(digest_json([recipe.seed, key])[:8], 16) >> 1
    return Sampling(**recipe.sampling.model_dump(), seed=seed)


def _restore_answer(
    model: str, mode: str, question: Question, entry: Mapping[str, Any]
) -> AnsweredQuestion:
    plain_text = _CITATION_MARK.sub("", entry["text"]) if mode == "retrieved" else entry["text"]
    return AnsweredQuestion(
        question,
        model,
        mode,
        entry["text"],
        entry["finish_reason"],
        entry["tokens"],
        tuple(entry["shown"]),
        entry["not_shown"],
        token_f1(plain_text, question.answer),
        exact_match(plain_text, question.answer),
    )


def _describe_hit(hit: Hit) -> dict[str, Any]:
    location = hit.passage.location
    return {
        "passage_id": hit.passage.id,
        "path": location.path,
        "byte_start": location.byte_start,
        "byte_end": location.byte_end,
        "pages": list(location.pages),
    }


def _group_by_model(
    answers: Sequence[AnsweredQuestion],
) -> dict[tuple[str, str], list[AnsweredQuestion]]:
    groups: dict[tuple[str, str], list[AnsweredQuestion]] = {}
    for answer in answers:
        groups.setdefault((answer.model, answer.mode), []).append(answer)
    return groups


def _journal_key(model: str, mode: str, question: Question) -> str:
    return f"{model}/{mode}/{question.id}"


_MIN_SPAN_SHARE = 0.5


"""Minimum share of the evidence's span within a passage of another chunking."""


def retrieve_all(
    answerer: RagSystem, questions: Sequence[Question], *, depth: int, k: int, job: Job
) -> dict[str, dict[str, Any]]:
    """Return the results of each question: ``ranking`` and ``shown``.

    ``ranking`` is pairs of id and score, with the evidence's id wherever a hit contains it;
    ``shown`` is the first ``k`` passages with their text.
    """
    journal = job.journal("retrieval")
    done = sum(question.id in journal for question in questions)
    with job.phase("retrieval", len(questions), "questions", done=done) as progress:
        for question in questions:
            if question.id in journal:
                continue
            job.check_cancelled()
            hits = answerer.retrieve(question.text, max(depth, k))
            shown = [[hit.passage.to_json(), hit.score] for hit in hits[:k]]
            journal.put(question.id, {"ranking": _label_hits(question, hits), "shown": shown})
            progress.advance()
    return {question.id: journal[question.id] for question in questions}


def _restore_hits(retrieved: dict[str, Any]) -> list[Hit]:
    """Return the passages shown with a question, as hits."""
    return [
        Hit(Passage.from_json(passage), score, rank)
        for rank, (passage, score) in enumerate(retrieved["shown"], 1)
    ]


def measure_retrieval(
    questions: Sequence[Question], retrieved: dict[str, dict[str, Any]], *, seed: int
) -> tuple[list[Metric], int]:
    """Return the retrieval measures, and the number of questions without evidence."""
    judged = [question for question in questions if question.evidence.get("passage_id")]
    qrels = {question.id: {str(question.evidence["passage_id"]): 1} for question in judged}
    run = {
        name: [(str(hit), float(score)) for hit, score in retrieved[name]["ranking"]]
        for name in qrels
    }
    metrics = [
        bootstrap(list(values.values()), seed=seed, name=f"retrieval/{name}")
        for name, values in retrieval_metrics(run, qrels).items()
    ]
    return metrics, len(questions) - len(judged)


def _label_hits(question: Question, hits: Sequence[Hit]) -> list[list[Any]]:
    """Return ids with scores; the first hit that contains the evidence gets its id."""
    evidence_id = question.evidence.get("passage_id")
    is_known = any(hit.passage.id == evidence_id for hit in hits)
    ranking: list[list[Any]] = []
    is_found = False
    for hit in hits:
        name = hit.passage.id
        if not is_known and not is_found and _contains_evidence(hit.passage, question):
            name, is_found = str(evidence_id), True
        ranking.append([name, hit.score])
    return ranking


def _contains_evidence(passage: Passage, question: Question) -> bool:
    """Return whether a passage contains the evidence: most of its span, or its exact words."""
    evidence = question.evidence
    start, end = evidence.get("start"), evidence.get("end")
    if evidence.get("document_id") == passage.document_id and (
        isinstance(start, int) and isinstance(end, int) and start < end
    ):
        return min(end, passage.end) - max(start, passage.start) >= _MIN_SPAN_SHARE * (end - start)
    quote = evidence.get("quote")
    return isinstance(quote, str) and bool(quote) and quote in passage.text
