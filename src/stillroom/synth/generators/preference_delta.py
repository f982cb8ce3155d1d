"""Preference by delta: the teacher's answer is chosen, that of a weaker model rejected.

Source: Geng et al. 2025 (delta learning), arXiv:2507.06187: what teaches is the difference of two
models, not the quality of either, so no judge is asked. Differs: answers that are the same, or of
which the weaker contains the stronger, are dropped.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.records import Link
from stillroom.synth.method import RECORD_FILTERS, Corpus, Draft, Seed, SeedKind, Writer
from stillroom.synth.novelty import rouge_l
from stillroom.synth.steps import Drafting, Steps, Stepwise, Unit
from stillroom.synth.tasks import pair, question_of
from stillroom.synth.templates import Template

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["PreferenceDelta"]


class PreferenceDelta(Stepwise):
    """Makes pairs of the teacher's answer and a weaker model's."""

    paper: ClassVar[str] = "arXiv:2507.06187"
    takes: ClassVar[tuple[SeedKind, ...]] = ("records",)
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {"ask": Template("{question}")}

    weaker: Reference = Field(
        "hub:HuggingFaceTB/SmolLM2-135M-Instruct",
        description="the model whose answers are rejected; may be the teacher drawn hotter",
    )
    weaker_backend: str = Field("auto", description="engine that runs it")
    weaker_temperature: float = Field(0.7, ge=0, le=2, description="of its answers")
    max_likeness: float = Field(
        0.9, gt=0, le=1, description="ROUGE-L of the two answers from which they are the same"
    )
    max_answer_tokens: int = Field(384, ge=16, le=8192, description="longest answer")

    @property
    @override
    def asks(self) -> int:
        return 2

    @property
    @override
    def longest(self) -> int:
        return self.max_answer_tokens

    @override
    def begin(self, corpus: Corpus) -> Writer:
        return _Two(self)

    @override
    def write(self, unit: Unit) -> Steps[None]:
        return self.compare(unit, unit.model)

    def compare(self, unit: Unit, weaker: TextModel) -> Steps[None]:
        """Ask both models and keep the pair."""
        question = question_of(unit.seed.record)
        if not question:
            unit.fail("a record that asks nothing")
            return
        words = unit.words("ask", question=question)
        chosen = yield from unit.say(words, tokens=self.max_answer_tokens)
        if chosen is None:
            return
        unit.count("asks of the weaker model")
        rejected = yield from unit.say(
            words,
            tokens=self.max_answer_tokens,
            what="answer of the weaker model",
            temperature=self.weaker_temperature,
            model=weaker,
        )
        if rejected is None:
            return
        if rouge_l(chosen, rejected) >= self.max_likeness or chosen in rejected:
            unit.fail("two answers that are the same", f"{chosen} | {rejected}")
        else:
            told = {
                "question": question,
                "answer": chosen,
                "chosen": chosen,
                "rejected": rejected,
                "way": "delta",
                "rejected_by": weaker.fingerprint,
            }
            other = Link("synth.generators.preference_delta.weaker", weaker.fingerprint)
            unit.keep(pair(question, chosen), told, links=[other])


class _Two:
    """The weaker model, opened when it is first asked."""

    round_size = 0

    def __init__(self, method: PreferenceDelta) -> None:
        self._method = method
        self._lock = threading.Lock()
        self._weaker: TextModel | None = None

    def generate(self, seeds: Sequence[Seed], model: TextModel) -> Iterator[Draft]:
        return self.open(seeds, model).run()

    def open(self, seeds: Sequence[Seed], model: TextModel) -> Drafting:
        weaker = self._open()

        def write(unit: Unit) -> Steps[None]:
            return self._method.compare(unit, weaker)

        return Drafting.of(self._method, write, seeds, model)

    def settle(self, draft: Draft) -> Draft:
        return replace(draft)

    def _open(self) -> TextModel:
        from stillroom.models import open_text_model

        with self._lock:
            if self._weaker is None:
                method = self._method
                self._weaker = open_text_model(method.weaker, backend=method.weaker_backend)
                weakref.finalize(self, self._weaker.close)
            return self._weaker
