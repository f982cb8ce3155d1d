"""Taxonomy: questions about the leaves of a taxonomy, from a syllabus or worked examples.

Source: Li et al. 2024 (GLAN), arXiv:2402.13064, section 2 (syllabus of sessions with key concepts,
questions from the concepts of one or two sessions, then answers) and Sudalairaj et al. 2024 (LAB),
arXiv:2403.01081, section 3 (questions modeled on a leaf's own examples, with its context if given).
Differs: syllabus and questions are JSON.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.prompting.conversation import make_qa_messages
from stillroom.synth.prompting.requests import (
    fence_text,
    make_array_schema,
    make_object_schema,
    make_string_schema,
    to_one_line,
)
from stillroom.synth.prompting.stepwise import (
    GenerationUnit,
    RequestCoroutine,
    StepwiseGenerator,
    run_concurrently,
)
from stillroom.synth.types import Topic

__all__ = ["Taxonomy"]

_MAX_SHOWN = 4


class Taxonomy(StepwiseGenerator):
    """Generate questions about every leaf, and answer them."""

    paper: ClassVar[str] = "arXiv:2402.13064"
    seed_kinds: ClassVar = ("topics",)
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "syllabus": "You plan a course on {subject}.{about}\n\nWrite its syllabus: the sessions in "
        "order, and for each the key concepts that students learn.",
        "from_concepts": "Course: {subject}\nSession: {sessions}\nKey concepts: "
        "{concepts}\n\nWrite one homework question on these concepts that can be answered without "
        "anything else.",
        "from_examples": "Subject: {subject}.{about}\n\nThese are questions of the kind that is "
        "wanted:\n{examples}\n\nWrite one new question of this kind that repeats none of them.",
        "grounded": "Subject: {subject}.\n\n{context}\n\nThese are questions of the kind that is "
        "wanted:\n{examples}\n\nWrite one new question of this kind that the text answers.",
        "answer": "{question}",
        "grounded_answer": "{context}\n\nAnswer from the text: {question}",
    }

    by: Literal["auto", "syllabus", "examples"] = Field(
        "auto", description="examples: modeled on the leaf's own; auto: where it has some"
    )
    questions: int = Field(3, ge=1, le=50, description="questions per leaf and attempt")
    sessions: int = Field(6, ge=1, le=30, description="maximum sessions of a syllabus")
    concepts: int = Field(5, ge=1, le=12, description="maximum key concepts of a session")
    max_question_characters: int = Field(
        400, ge=40, le=4000, description="maximum characters of a question"
    )
    max_answer_tokens: int = Field(512, ge=16, le=8192, description="maximum tokens of an answer")

    @property
    @override
    def max_requests(self) -> int:
        return 1 + 2 * self.questions

    @property
    @override
    def max_tokens(self) -> int:
        return max(self.max_answer_tokens, self.max_question_characters)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        topic = unit.seed.topic
        has_examples = bool(topic.examples)
        if self.by == "examples" and not has_examples:
            unit.fail("a leaf without examples")
            return
        rng = unit.rng("questions")
        if has_examples and self.by != "syllabus":
            yield from run_concurrently(
                [self._after_examples(unit, topic, rng) for _ in range(self.questions)]
            )
            return
        sessions = yield from self._plan(unit, topic)
        if sessions:
            yield from run_concurrently(
                [self._of_concepts(unit, topic, sessions, rng) for _ in range(self.questions)]
            )

    def _plan(self, unit: GenerationUnit, topic: Topic) -> RequestCoroutine[list[dict[str, Any]]]:
        session = make_object_schema(
            title=make_string_schema(80),
            concepts=make_array_schema(make_string_schema(60), self.concepts),
        )
        reply = yield from unit.ask_json(
            unit.render("syllabus", subject=_subject(topic), about=_about(topic)),
            make_object_schema(sessions=make_array_schema(session, self.sessions)),
            label="syllabus",
        )
        return list(reply["sessions"]) if reply else []

    def _of_concepts(
        self, unit: GenerationUnit, topic: Topic, sessions: list[dict[str, Any]], rng: random.Random
    ) -> RequestCoroutine[None]:
        selected = rng.sample(sessions, min(len(sessions), rng.choice((1, 2))))
        all_concepts = [concept for session in selected for concept in session["concepts"]]
        concepts = rng.sample(all_concepts, min(len(all_concepts), rng.randint(1, 5)))
        prompt_text = unit.render(
            "from_concepts",
            subject=_subject(topic),
            sessions=to_one_line("; ".join(session["title"] for session in selected)),
            concepts=to_one_line("; ".join(concepts)),
        )
        fields = {"sessions": [session["title"] for session in selected], "concepts": concepts}
        yield from self._settle(unit, prompt_text, "", fields)

    def _after_examples(
        self, unit: GenerationUnit, topic: Topic, rng: random.Random
    ) -> RequestCoroutine[None]:
        shown = rng.sample(topic.examples, min(len(topic.examples), _MAX_SHOWN))
        context = next((example["context"] for example in shown if example.get("context")), "")
        listed = "\n".join(f"- {to_one_line(example['question'])}" for example in shown)
        if context:
            prompt_text = unit.render(
                "grounded", subject=_subject(topic), context=fence_text(context), examples=listed
            )
        else:
            prompt_text = unit.render(
                "from_examples", subject=_subject(topic), about=_about(topic), examples=listed
            )
        yield from self._settle(unit, prompt_text, context, {"context": context} if context else {})

    def _settle(
        self, unit: GenerationUnit, prompt_text: str, context: str, extra_fields: Mapping[str, Any]
    ) -> RequestCoroutine[None]:
        schema = make_object_schema(question=make_string_schema(self.max_question_characters, 8))
        reply = yield from unit.ask_json(prompt_text, schema, label="question")
        if reply is None:
            return
        question = to_one_line(reply["question"])
        prompted = (
            unit.render("grounded_answer", context=fence_text(context), question=question)
            if context
            else unit.render("answer", question=question)
        )
        answer = yield from unit.ask(prompted, tokens=self.max_answer_tokens)
        if answer is not None:
            fields = {"question": question, "answer": answer, **extra_fields}
            unit.add_record(make_qa_messages(prompted if context else question, answer), fields)


def _subject(topic: Topic) -> str:
    return " > ".join(to_one_line(name) for name in topic.path)


def _about(topic: Topic) -> str:
    return f" It is {to_one_line(topic.description)}" if topic.description else ""
