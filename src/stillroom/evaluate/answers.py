"""Asking models the questions, with and without passages, and scoring what they say.

One model is in memory at a time. Every answer is journaled as it comes, so that a killed run goes
on where it stopped. Scores are SQuAD's exact match and F1, citation marks taken out first.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.evaluate.answerer import Answerer
from stillroom.evaluate.metrics import Metric, bootstrap, paired_difference
from stillroom.evaluate.questions import Question
from stillroom.evaluate.ranking import shown_hits
from stillroom.evaluate.recipe import EvaluateRecipe
from stillroom.jobs import Job
from stillroom.models import TextModel, open_text_model
from stillroom.provenance import digest_json
from stillroom.records import Completion, Hit, Message, Prompt, Sampling
from stillroom.text.normalize import exact_match, token_f1

__all__ = ["Asked", "ask_models", "measure_answers", "measure_speed"]

_MARK = re.compile(r"\s*[\[【［]\s*\d+(?:\s*,\s*\d+)*\s*[\]】］]")
_TURN_TOKENS = 8
_FEWEST_SECONDS = 1e-9
_BLOCK = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer of one model to one question, with what it was shown and its scores."""

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
        """Return what is kept in answers.jsonl."""
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
    answerer: Answerer | None,
    found: Mapping[str, dict[str, Any]],
    job: Job,
) -> list[Asked]:
    """Return every model's answers in order of model, mode and question.

    Passages that do not fit a model's context are left out from the last, and counted in
    ``not_shown``.
    """
    modes = ("closed", "retrieved") if answerer else ("closed",)
    journal = job.journal("answers")
    keys = [
        (name, mode, question) for name in recipe.models for mode in modes for question in questions
    ]
    done = sum(_key(*key) in journal for key in keys)
    with job.phase("answers", len(keys), "answers", done=done) as progress:
        for name, reference in recipe.models.items():
            todo = [key for key in keys if key[0] == name and _key(*key) not in journal]
            if not todo:
                continue
            model = open_text_model(reference, backend=recipe.backend)
            try:
                for at in range(0, len(todo), _BLOCK):
                    block = todo[at : at + _BLOCK]
                    _ask(model, block, recipe, answerer, found, job, progress.advance)
            finally:
                model.close()
    return [_read(*key, journal[_key(*key)]) for key in keys]


def measure_answers(asked: Sequence[Asked], *, seed: int) -> list[Metric]:
    """Return F1 and exact match by model and mode, then each model's F1 less the first one's."""
    metrics, first = [], asked[0].model
    groups = _group(asked)
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
    """Return tokens written per second by model, prompts' reading included.

    The unit that is resampled is a block of questions, since those are answered side by side.
    """
    journal = job.journal("speed")
    keys, metrics = journal.keys(), []
    for model in models:
        blocks = [journal[key] for key in keys if key.startswith(f"{model}/")]
        seconds = [max(block["seconds"], _FEWEST_SECONDS) for block in blocks]
        rates = [block["tokens"] / spent for block, spent in zip(blocks, seconds, strict=True)]
        name = f"{model}/tokens_per_second"
        metrics.append(bootstrap(rates, weights=seconds, seed=seed, name=name, unit="tokens/s"))
    return metrics


def _ask(
    model: TextModel,
    todo: Sequence[tuple[str, str, Question]],
    recipe: EvaluateRecipe,
    answerer: Answerer | None,
    found: Mapping[str, dict[str, Any]],
    job: Job,
    advance: Callable[[], None],
) -> None:
    """Ask one model a block of questions; each answer is journaled as it comes."""
    journal = job.journal("answers")
    prompts, samplings, shown = [], [], []
    for name, mode, question in todo:
        hits = shown_hits(found[question.id]) if mode == "retrieved" else []
        prompt, kept = _fit(
            model, question, hits, answerer if mode == "retrieved" else None, recipe
        )
        prompts.append(prompt)
        shown.append((kept, len(hits) - len(kept)))
        samplings.append(_sampling(recipe, _key(name, mode, question)))

    def keep(at: int, completion: Completion) -> None:
        if completion.finish_reason == "cancelled":
            return
        kept, not_shown = shown[at]
        journal.put(
            _key(*todo[at]),
            {
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "tokens": completion.completion_tokens,
                "shown": [_describe(hit) for hit in kept],
                "not_shown": not_shown,
            },
        )
        advance()

    started = time.perf_counter()
    completions = model.generate(prompts, samplings, on_done=keep, is_cancelled=job.is_cancelled)
    job.check_cancelled()
    spent = time.perf_counter() - started
    written = sum(completion.completion_tokens for completion in completions)
    job.journal("speed").put(_key(*todo[0]), {"tokens": written, "seconds": spent})


def _fit(
    model: TextModel,
    question: Question,
    hits: list[Hit],
    answerer: Answerer | None,
    recipe: EvaluateRecipe,
) -> tuple[Prompt, list[Hit]]:
    """Return the prompt with as many passages as the model's context holds."""
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


def _read(model: str, mode: str, question: Question, kept: Mapping[str, Any]) -> Asked:
    said = _MARK.sub("", kept["text"]) if mode == "retrieved" else kept["text"]
    return Asked(
        question,
        model,
        mode,
        kept["text"],
        kept["finish_reason"],
        kept["tokens"],
        tuple(kept["shown"]),
        kept["not_shown"],
        token_f1(said, question.answer),
        exact_match(said, question.answer),
    )


def _describe(hit: Hit) -> dict[str, Any]:
    place = hit.passage.location
    return {
        "passage_id": hit.passage.id,
        "path": place.path,
        "byte_start": place.byte_start,
        "byte_end": place.byte_end,
        "pages": list(place.pages),
    }


def _group(asked: Sequence[Asked]) -> dict[tuple[str, str], list[Asked]]:
    groups: dict[tuple[str, str], list[Asked]] = {}
    for answer in asked:
        groups.setdefault((answer.model, answer.mode), []).append(answer)
    return groups


def _key(model: str, mode: str, question: Question) -> str:
    return f"{model}/{mode}/{question.id}"
