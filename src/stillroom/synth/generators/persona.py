"""Persona: personas inferred from texts and relations, and tasks written for each persona.

Source: Ge et al. 2024 (Persona Hub), arXiv:2406.20094, sections 2 and 3 (text-to-persona,
persona-to-persona, zero-shot tasks). Differs: personas are compared with earlier ones by ROUGE-L,
where the paper uses MinHash and an embedder; records of a repeated persona are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import DISTINCT
from stillroom.records import make_content_id
from stillroom.synth.interfaces import RECORD_FILTERS, GeneratorState
from stillroom.synth.lexical_overlap import NoveltyPool
from stillroom.synth.prompting.conversation import echoes_question, get_question, make_qa_messages
from stillroom.synth.prompting.requests import (
    fence_text,
    make_array_schema,
    make_object_schema,
    make_string_schema,
    to_one_line,
)
from stillroom.synth.prompting.stepwise import (
    CoroutineBatch,
    GenerationUnit,
    RequestCoroutine,
    StepwiseGenerator,
    run_concurrently,
)
from stillroom.synth.types import (
    GenerationFailure,
    GenerationResult,
    GeneratorContext,
    WorkItem,
)
from stillroom.text.unicode import split_words

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Persona"]

_LEAST_WORDS = 3
_PROMPT_LEAK = re.compile(
    r"\bthis (?:person|text)\b|\b(?:trade or interests|what an? \w+ (?:question|challenge))\b|"
    r"\bthe person(?:['\u2019]s)? (?:mentioned|described|in|above|would|is|has|trade|profession)\b|"
    r"\b(?:the|this|your) persona\b|\b(?:the )?above context\b|\bas the person would\b|"
    r"^\s*(?:request|question|problem|task|persona)\s*:|^\s*a\s*:",
    re.IGNORECASE,
)
"""Words of the prompt: a task that contains them is about the persona, not by it."""
_NOBODY = re.compile(
    r"\b(?:read, write or use|(?:the|this) text|in close relation)\b", re.IGNORECASE
)
TaskKind = Literal["instruction", "reasoning", "knowledge", "tool"]
_PERSONA = make_string_schema(200, 12)
_KINDS: dict[TaskKind, str] = {
    "instruction": "Write one request that this person would make to an assistant.",
    "reasoning": "Write one problem of mathematics or logic, with all the numbers it needs, that "
    "this person would meet.",
    "knowledge": "Write one question about a fact of this person's trade or interests.",
    "tool": "Write what a software tool should do that this person needs: its name, what it is "
    "given, and what it gives back.",
}


class Persona(StepwiseGenerator):
    """Infer personas from texts (or take those of records), and write tasks for them."""

    paper: ClassVar[str] = "arXiv:2406.20094"
    seed_kinds: ClassVar = ("passages", "records")
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "from_text": "{text}\n\nWho is likely to read, write or use this text? Describe that "
        "person in one sentence: trade, interests, and what is special.",
        "related": "Persona: {persona}\n\nWho is in close relation with this person, at work, at "
        "home or elsewhere? Describe {number} of them, each in one sentence.",
        "task": "Persona: {persona}\n\n{kind} Write it as the person would, and nothing else.",
        "answer": "{task}",
    }

    relations: int = Field(
        1, ge=0, le=8, description="related personas generated from each, per hop"
    )
    hops: int = Field(0, ge=0, le=6, description="hops from the first persona (paper: 6)")
    kinds: Annotated[tuple[TaskKind, ...], DISTINCT] = Field(
        ("instruction",), min_length=1, description="kinds of tasks for each persona"
    )
    likeness: float = Field(
        0.9,
        gt=0,
        le=1,
        description="ROUGE-L with an earlier persona above which a persona is a repetition",
    )
    max_task_tokens: int = Field(160, ge=16, le=2048, description="maximum tokens of a task")
    max_answer_tokens: int = Field(512, ge=16, le=8192, description="maximum tokens of an answer")

    @property
    def _num_personas(self) -> int:
        """Number of personas per seed."""
        people: int = sum(self.relations**hop for hop in range(self.hops + 1))
        return people

    @property
    @override
    def max_requests(self) -> int:
        return 1 + self._num_personas * (1 + 2 * len(self.kinds))

    @property
    @override
    def max_records(self) -> int:
        return len(self.kinds) * self._num_personas

    @override
    def start(self, corpus: GeneratorContext) -> GeneratorState:
        return _PersonaState(self)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        first = yield from self._first(unit)
        people = [(first, 0, "")] if first else []
        for hop in range(1, self.hops + 1 if self.relations else 1):
            previous = [person for person in people if person[1] == hop - 1]
            related = yield from run_concurrently(
                [self._related(unit, person) for person, _, _ in previous]
            )
            for (person, _, _), personas in zip(previous, related, strict=True):
                people += [(persona_text, hop, _id(person)) for persona_text in personas]
        yield from run_concurrently(
            [self._task(unit, person, hop, of, kind) for person, hop, of in people
             for kind in self.kinds]
        )  # fmt: skip

    def _first(self, unit: GenerationUnit) -> RequestCoroutine[str]:
        if unit.seed.kind == "records":
            description = unit.seed.record.fields.get("persona") or get_question(unit.seed.record)
            if not description:
                unit.fail("a record that describes nobody")
            return to_one_line(str(description))
        prompt_text = unit.render("from_text", text=fence_text(unit.seed.passage.text))
        reply = yield from unit.ask_json(
            prompt_text, make_object_schema(persona=_PERSONA), label="persona"
        )
        return self._person(unit, reply["persona"]) if reply else ""

    def _related(self, unit: GenerationUnit, persona: str) -> RequestCoroutine[list[str]]:
        prompt_text = unit.render("related", persona=persona, number=str(self.relations))
        schema = make_object_schema(personas=make_array_schema(_PERSONA, self.relations))
        reply = yield from unit.ask_json(prompt_text, schema, label="related personas")
        people = (
            [self._person(unit, description) for description in reply["personas"]] if reply else []
        )
        return [person for person in people if person]

    def _person(self, unit: GenerationUnit, description: str) -> str:
        """Return a persona on one line; empty, with a recorded failure, if it describes nobody."""
        persona = to_one_line(description)
        words = [
            token
            for token in split_words(persona)
            if token.isalpha() and not (len(token) == 1 and token.isascii())
        ]
        is_complete = len(words) >= _LEAST_WORDS and persona[-1] not in ",;:"
        if is_complete and not _NOBODY.search(persona):
            return persona
        unit.fail("a persona that describes nobody", persona)
        return ""

    def _task(
        self, unit: GenerationUnit, persona: str, hop: int, related_to: str, kind: TaskKind
    ) -> RequestCoroutine[None]:
        prompt_text = unit.render("task", persona=persona, kind=_KINDS[kind])
        task = yield from unit.ask(prompt_text, tokens=self.max_task_tokens, label="task")
        if task is None:
            return
        if _PROMPT_LEAK.search(task):
            unit.fail("words of the prompt in the task", task)
            return
        answer = yield from unit.ask(
            unit.render("answer", task=task), tokens=self.max_answer_tokens
        )
        if answer is not None and echoes_question(task, answer):
            unit.fail("an answer that repeats its task", f"{task} | {answer}")
        elif answer is not None:
            fields = {
                "question": task,
                "answer": answer,
                "persona": persona,
                "persona_id": _id(persona),
                "related_to": related_to,
                "hop": hop,
                "task_kind": kind,
            }
            unit.add_record(make_qa_messages(task, answer), fields)


class _PersonaState(GeneratorState):
    """The personas of one side of the split."""

    round_size = 8

    def __init__(self, method: Persona) -> None:
        self._method = method
        self._pool = NoveltyPool(method.likeness)
        self._ids: set[str] = set()

    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        return self._method.open(seeds, model)

    def finalize(self, draft: GenerationResult) -> GenerationResult:
        """Drop the records of personas similar to those of an earlier unit."""
        records, failures, new_ids = [], list(draft.failures), set()
        for record in draft.records:
            persona, name = str(record.fields["persona"]), str(record.fields["persona_id"])
            if name in new_ids:
                records.append(record)
            elif name in self._ids or self._pool.max_rouge_l(persona):
                failures.append(GenerationFailure("persona like one before", persona))
            else:
                records.append(record)
                new_ids.add(name)
                self._ids.add(name)
                self._pool.add(persona)
        return replace(draft, records=tuple(records), failures=tuple(failures))


def _id(persona: str) -> str:
    return make_content_id("per", persona)
