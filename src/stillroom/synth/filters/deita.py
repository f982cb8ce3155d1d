"""DEITA: instruction complexity and response quality, by scorer checkpoints or an LLM judge.

Source: Liu et al. 2023, arXiv:2312.15685. With ``complexity_scorer`` and ``quality_scorer`` (the
authors' checkpoints, or others trained on their prompts) a score is the expected mark from 1 to 6
under the checkpoint's probabilities, given the prompt it was trained on. With ``judge_model`` a
model places the record on a ladder of evolved examples instead: this follows the paper's evolved
comparisons but is not its scorer, and every score names the method used. In a dialogue each
exchange is scored by itself, and the products are summed, as the authors do. A record without a
mark is dropped as unmeasured, never given an average one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.errors import RecipeError
from stillroom.models.choice import score_options
from stillroom.provenance import digest_json
from stillroom.recipes import Reference
from stillroom.records import Message, Prompt, Record
from stillroom.synth.interfaces import (
    FilterContext,
    FilterResult,
    ModelScoredFilter,
    ScoringState,
    get_concurrency,
)
from stillroom.synth.prompting.conversation import get_exchanges
from stillroom.synth.prompting.requests import fence_text

__all__ = ["Deita"]

_MARKS = tuple("123456")
_COMPLEXITY_FORM = (
    "You are a helpful assistant. Please identify the complexity score of the following user "
    "query. \n##Query: {asked}  \n##Complexity: "
)
_QUALITY_FORM = (
    "You are a helpful assistant. Please identify the quality score of the Response corresponding "
    "to the Question. \n #Question#:\n{asked}\n#Response#:\n{said} \n##Quality: "
)
_LADDER = (
    "Name a fruit.",
    "Name three fruits that grow in cool climates.",
    "Compare apples and pears as crops for a cool climate, in two sentences.",
    "Compare apples and pears as crops for a cool climate: frost, pollination and storage, with "
    "one number for each.",
    "Plan an orchard of one hectare in a cool climate: choose varieties by frost and pollination, "
    "give spacing, and say what you would change if the soil were wet.",
    "Plan an orchard of one hectare in a cool climate under a budget of 20,000, show the layout, "
    "prove that every tree has a pollinator within 30 m, and estimate the yield over ten years "
    "with the losses that a frost every fourth year brings.",
)
_STEPS = (
    "1: does not answer, or is wrong throughout",
    "2: answers in part, with errors that matter",
    "3: answers, but vaguely or with gaps",
    "4: answers correctly",
    "5: answers correctly and completely, and is clear",
    "6: could not be better in content, order and wording",
)


class Deita(ModelScoredFilter):
    """Drop simple instructions and poor answers, each scored from 1 to 6."""

    paper: ClassVar[str] = "arXiv:2312.15685"

    complexity_scorer: Reference | None = Field(
        None, description="causal checkpoint trained to score complexity, such as the authors'"
    )
    quality_scorer: Reference | None = Field(
        None, description="causal checkpoint trained to score quality, such as the authors'"
    )
    judge_model: Reference | None = Field(
        None, description="model that scores where no scorer is given"
    )
    min_complexity: float = Field(
        1.0, ge=1, le=6, description="minimum complexity; of a dialogue, the mean of its exchanges"
    )
    min_quality: float = Field(
        1.0, ge=1, le=6, description="minimum quality; of a dialogue, the mean of its exchanges"
    )
    min_product: float = Field(
        1.0,
        ge=1,
        description="minimum product of both, summed over exchanges; the paper ranks by it",
    )

    @override
    def start(self, context: FilterContext) -> ScoringState:
        if self.judge_model is None and not (self.complexity_scorer and self.quality_scorer):
            raise RecipeError(
                "deita has no scorer",
                code="recipe.value",
                expected="complexity_scorer and quality_scorer, or a judge_model for a missing one",
                next="name a judge_model, preferably not the model that writes the records",
            )
        return _DeitaState(self, context)


class _DeitaState(ScoringState):
    def __init__(self, settings: Deita, context: FilterContext) -> None:
        self._settings = settings
        open_model = context.models.text_model
        self._by = {
            "complexity": "scorer" if settings.complexity_scorer else "judge",
            "quality": "scorer" if settings.quality_scorer else "judge",
        }
        named = {
            "complexity": settings.complexity_scorer or settings.judge_model,
            "quality": settings.quality_scorer or settings.judge_model,
        }
        self._models = {
            name: open_model(reference)
            for name, reference in named.items()
            if reference is not None
        }
        self.concurrency = get_concurrency(list(self._models.values()))
        self._seed = context.seed
        prints = [model.fingerprint for model in self._models.values()]
        self.fingerprint = digest_json([prints, self._by, 2])

    @override
    def measure(self, record: Record) -> Any:
        exchanges = get_exchanges(record)
        if not exchanges or not all(question.strip() for question, _ in exchanges):
            return {"failed": "there is no question, or no answer"}
        forms: dict[str, Callable[[str, str], Prompt]] = {
            "complexity": _place_question if self._by["complexity"] == "judge" else _form_question,
            "quality": _place_answer if self._by["quality"] == "judge" else _form_answer,
        }
        values: dict[str, Any] = {}
        marks: dict[str, list[float]] = {}
        for name, model in self._models.items():
            prompts = [forms[name](question, answer) for question, answer in exchanges]
            choices = score_options(model, prompts, _MARKS, seed=self._seed)
            scores = [complexity.expect([float(mark) for mark in _MARKS]) for complexity in choices]
            marks[name] = [score for score in scores if score is not None]
            if len(marks[name]) < len(scores):
                return {"failed": f"no mark for {name}"}
            values[name] = math.fsum(marks[name]) / len(scores)
            values[f"{name}_by"] = f"{self._by[name]}, {choices[0].way}"
        pairs = zip(marks["complexity"], marks["quality"], strict=True)
        values["product"] = math.fsum(complexity * quality for complexity, quality in pairs)
        return values

    @override
    def decide(self, record: Record, value: Any) -> FilterResult:
        settings = self._settings
        product = value["product"]
        for name, score, least in (
            ("complexity", value["complexity"], settings.min_complexity),
            ("quality", value["quality"], settings.min_quality),
            ("complexity times quality", product, settings.min_product),
        ):
            if score < least:
                return FilterResult(False, f"{name} too low", score, least, details=value)
        return FilterResult(True, score=product, details=value)


def _form_question(question: str, answer: str) -> Prompt:
    return Prompt(text=_COMPLEXITY_FORM.format(asked=question))


def _form_answer(question: str, answer: str) -> Prompt:
    return Prompt(text=_QUALITY_FORM.format(asked=question, said=answer))


def _place_question(question: str, answer: str) -> Prompt:
    rungs = "\n".join(f"{level}: {text}" for level, text in enumerate(_LADDER, 1))
    words = (
        f"A ladder of tasks, each made from the one before by asking for more:\n{rungs}\n\n"
        f"Another task:\n{fence_text(question)}\n\nWhich rung is as demanding as this task, "
        "whatever it is "
        "about? Answer with the number only, 1 to 6."
    )
    return Prompt((Message("user", words),))


def _place_answer(question: str, answer: str) -> Prompt:
    steps = "\n".join(_STEPS)
    words = (
        f"Task:\n{fence_text(question)}\n\nAnswer:\n{fence_text(answer)}\n\nSteps of "
        f"quality:\n{steps}\n\n"
        "On which step does the answer stand? Answer with the number only, 1 to 6."
    )
    return Prompt((Message("user", words),))
