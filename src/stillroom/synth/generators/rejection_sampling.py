"""Rejection sampling (best of n): several answers per question, filtered by a verifier.

Source: Yuan et al. 2023 (RFT), arXiv:2308.01825, section 3.2 (distinct correct reasoning paths) and
Wang et al. 2022 (self-consistency), arXiv:2203.11171 (the plurality, where no answer is known).
Differs: the pass rate is stored as the question's difficulty, and questions that are too easy or
too hard can be excluded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field
from typing_extensions import override

from stillroom.evaluate.final_answer import extract_answer, is_same_answer
from stillroom.evaluate.interfaces import VERIFIERS, Verifier
from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.lexical_overlap import rouge_l
from stillroom.synth.prompting.conversation import (
    get_final_answer,
    get_question,
    get_reference_answer,
    make_qa_messages,
)
from stillroom.synth.prompting.stepwise import GenerationUnit, RequestCoroutine, StepwiseGenerator

__all__ = ["RejectionSampling"]


class _PassedSample(NamedTuple):
    text: str
    score: float


class RejectionSampling(StepwiseGenerator):
    """Sample answers and keep those that pass a verifier."""

    paper: ClassVar[str] = "arXiv:2308.01825"
    seed_kinds: ClassVar = ("records",)
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {"ask": "{question}"}

    samples: int = Field(4, ge=1, le=256, description="answers sampled per question")
    keep: Literal["best", "distinct"] = Field(
        "best",
        description="best: one, with the highest score; distinct: all that differ (a filter "
        "duplicate that you name must then set same_question: false)",
    )
    likeness: float = Field(
        0.9,
        gt=0,
        le=1,
        description="ROUGE-L with an accepted answer from which an answer is not distinct",
    )
    min_pass: float = Field(0, ge=0, le=1, description="minimum share of answers that pass")
    max_pass: float = Field(
        1,
        ge=0,
        le=1,
        description="maximum share of answers that pass; below 1 drops easy questions",
    )
    vote: bool = Field(
        False, description="where a record has no answer, use the plurality of the samples"
    )
    verifier: Annotated[Verifier, VERIFIERS.choice()] = Field(
        "maths", validate_default=True, description="method of checking an answer"
    )
    max_answer_tokens: int = Field(512, ge=16, le=8192, description="maximum tokens of an answer")

    @classmethod
    @override
    def choose_filters(cls, settings: Mapping[str, Any]) -> Sequence[str | Mapping[str, Any]]:
        if settings.get("keep") != "distinct":
            return cls.default_filters
        several = {"name": "duplicate", "same_question": False}
        return [several if name == "duplicate" else name for name in cls.default_filters]

    @property
    @override
    def max_requests(self) -> int:
        return self.samples

    @property
    @override
    def max_records(self) -> int:
        return self.samples if self.keep == "distinct" else 1

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        record = unit.seed.record
        question = get_question(record)
        if not question:
            unit.fail("a record that asks nothing")
            return
        prompt_text = unit.render("ask", question=question)
        samples = yield from unit.sample_many(
            prompt_text, count=self.samples, tokens=self.max_answer_tokens
        )
        texts = [text.strip() for text in samples if text is not None and text.strip()]
        unit.count("samples", self.samples)
        fields: dict[str, Any] = {**record.fields, "answer": get_reference_answer(record)}
        voted = self.vote and not fields["answer"]
        if voted:
            fields["answer"] = _plurality(texts)
            if not fields["answer"]:
                unit.fail("no plurality among the answers", " | ".join(texts))
                return
        if self.verifier.lacks(fields):
            unit.fail("a record without what its answer is checked by")
            return
        final = fields["answer"] if voted else get_final_answer(record)
        self._settle(unit, question, (final, voted), self._pass(unit, texts, fields))

    def _pass(
        self, unit: GenerationUnit, texts: list[str], fields: dict[str, Any]
    ) -> list[_PassedSample]:
        passed = []
        for text in texts:
            verdict = self.verifier.check(text, fields)
            if verdict.keep:
                passed.append(_PassedSample(text, verdict.score))
            else:
                unit.fail(verdict.reason, text)
        unit.count("samples that pass", len(passed))
        return passed

    def _settle(
        self,
        unit: GenerationUnit,
        question: str,
        right: tuple[str, bool],
        passed: list[_PassedSample],
    ) -> None:
        share = len(passed) / self.samples
        if not passed:
            return
        if not self.min_pass <= share <= self.max_pass:
            unit.fail("question too easy or too hard", f"{share:.2f}: {question}")
            return
        fields = {
            "question": question,
            "final_answer": right[0],
            "pass_rate": round(share, 4),
            "samples": self.samples,
            "answer_by": "plurality" if right[1] else "record",
        }
        accepted: list[str] = []
        for text, _ in sorted(passed, key=lambda sample: -sample.score):
            if any(rouge_l(text, earlier) >= self.likeness for earlier in accepted):
                unit.fail("reasoning like one kept", text)
                continue
            accepted.append(text)
            unit.add_record(make_qa_messages(question, text), {**fields, "answer": text})
            if self.keep == "best":
                break


def _plurality(texts: list[str]) -> str:
    """Return the final answer that more texts share than any other, or an empty string."""
    groups: list[list[str]] = []
    for answer in filter(None, (extract_answer(text) for text in texts)):
        for group in groups:
            if is_same_answer(answer, group[0]):
                group.append(answer)
                break
        else:
            groups.append([answer])
    counts = Counter({number: len(group) for number, group in enumerate(groups)}).most_common(2)
    if not counts or counts[0][1] < 2 or (len(counts) > 1 and counts[0][1] == counts[1][1]):
        return ""
    return groups[counts[0][0]][0]
