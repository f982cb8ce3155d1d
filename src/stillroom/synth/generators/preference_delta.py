"""Preference delta: preference pairs (DPO), teacher response chosen, weaker model's rejected.

Source: Geng et al. 2025 (delta learning), arXiv:2507.06187: the training signal is the difference
of two models, not the quality of either, so no judge is needed. Differs: pairs with equal answers,
or whose weaker answer contains the stronger, are dropped.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.recipes import Reference
from stillroom.records import Link
from stillroom.synth.interfaces import RECORD_FILTERS, GeneratorState
from stillroom.synth.lexical_overlap import rouge_l
from stillroom.synth.prompting.conversation import get_question, make_qa_messages
from stillroom.synth.prompting.stepwise import (
    CoroutineBatch,
    GenerationUnit,
    RequestCoroutine,
    StepwiseGenerator,
)
from stillroom.synth.types import GeneratorContext, WorkItem

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["PreferenceDelta"]


class PreferenceDelta(StepwiseGenerator):
    """Pair the teacher's answer with a weaker model's."""

    paper: ClassVar[str] = "arXiv:2507.06187"
    seed_kinds: ClassVar = ("records",)
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {"ask": "{question}"}

    weaker: Reference = Field(
        DEFAULT_TEACHER,
        description="model whose answers are rejected; may be the teacher at a higher temperature",
    )
    weaker_backend: str = Field("auto", description="engine that runs it")
    weaker_temperature: float = Field(
        0.7, ge=0, le=2, description="sampling temperature of its answers"
    )
    max_likeness: float = Field(
        0.9, gt=0, le=1, description="ROUGE-L of the two answers from which they count as equal"
    )
    max_answer_tokens: int = Field(384, ge=16, le=8192, description="maximum tokens of an answer")

    @property
    @override
    def max_requests(self) -> int:
        return 2

    @override
    def start(self, corpus: GeneratorContext) -> GeneratorState:
        return _PreferenceDeltaState(self)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        return self.compare(unit, unit.model)

    def compare(self, unit: GenerationUnit, weaker: TextModel) -> RequestCoroutine[None]:
        """Request both answers and add the pair."""
        question = get_question(unit.seed.record)
        if not question:
            unit.fail("a record that asks nothing")
            return
        prompt_text = unit.render("ask", question=question)
        strong = yield from unit.ask(prompt_text, tokens=self.max_answer_tokens)
        if strong is None:
            return
        unit.count("asks of the weaker model")
        weak = yield from unit.ask(
            prompt_text,
            tokens=self.max_answer_tokens,
            label="answer of the weaker model",
            temperature=self.weaker_temperature,
            model=weaker,
        )
        if weak is None:
            return
        if rouge_l(strong, weak) >= self.max_likeness or strong in weak:
            unit.fail("two answers that are the same", f"{strong} | {weak}")
        else:
            fields = {
                "question": question,
                "answer": strong,
                "chosen": strong,
                "rejected": weak,
                "way": "delta",
                "rejected_by": weaker.fingerprint,
            }
            weaker_link = Link("synth.generators.preference_delta.weaker", weaker.fingerprint)
            unit.add_record(make_qa_messages(question, strong), fields, links=[weaker_link])


class _PreferenceDeltaState(GeneratorState):
    """The weaker model, opened on first use."""

    def __init__(self, method: PreferenceDelta) -> None:
        self._method = method
        self._lock = threading.Lock()
        self._weaker: TextModel | None = None

    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        write = partial(self._method.compare, weaker=self._open())
        return CoroutineBatch.of(self._method, write, seeds, model)

    def _open(self) -> TextModel:
        from stillroom.models import open_text_model

        with self._lock:
            if self._weaker is None:
                method = self._method
                self._weaker = open_text_model(method.weaker, backend=method.weaker_backend)
                weakref.finalize(self, self._weaker.close)
            return self._weaker
