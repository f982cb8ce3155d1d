"""Self-Instruct: new tasks from in-context examples, filtered by ROUGE-L novelty.

Source: Wang et al. 2023, arXiv:2212.10560, section 2 and its released code (eight tasks shown, two
of them generated; instructions of 4 to 150 words, none about pictures or files; ROUGE-L with every
task of the pool at most 0.7; output first for classification). Differs: a task joins the pool once
it has an instance, at the end of a round of requests; form and instance are JSON, and an instance
that mentions that form, or whose label is a text, is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.interfaces import RECORD_FILTERS, GeneratorState
from stillroom.synth.lexical_overlap import NoveltyPool
from stillroom.synth.prompting.conversation import (
    get_question,
    make_qa_messages,
    parse_numbered_list,
)
from stillroom.synth.prompting.requests import (
    make_enum_schema,
    make_object_schema,
    make_string_schema,
    to_one_line,
)
from stillroom.synth.prompting.stepwise import (
    CoroutineBatch,
    GenerationUnit,
    RequestCoroutine,
    StepwiseGenerator,
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

__all__ = ["SelfInstruct"]

_UNFIT = re.compile(
    r"\b(?:images?|graphs?|pictures?|files?|maps?|draw|plot|go to)\b", re.IGNORECASE
)
_FRAME = re.compile(
    r"\bjson\b|\b(?:the|this|that) (?:label|input|output) (?:that )?is\b|"
    r"\bsample (?:input|output)\b",
    re.IGNORECASE,
)
_COPIED = 20
_LABEL_WORDS = 12
_LABEL_CHARACTERS = 80
_KIND = make_object_schema(classification=make_enum_schema("yes", "no"))


class SelfInstruct(StepwiseGenerator):
    """Grow a pool of tasks from seed tasks."""

    paper: ClassVar[str] = "arXiv:2212.10560"
    seed_kinds: ClassVar = ("records",)
    samples_seeds: ClassVar[bool] = True
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "tasks": "Here is a series of tasks:\n\n{tasks}\n\nCome up with new tasks of many kinds, "
        "numbered on from there. One task a line, nothing else.",
        "kind": "Task: {task}\n\nIs this a classification task, one whose output is one of a few "
        "labels? Answer yes or no.",
        "instance": "Task: {task}\n\nGive one example of it as JSON: the input that it needs "
        "(empty if it needs none), then the output.",
        "labelled": "Classification task: {task}\n\nGive one example of it as JSON: first the "
        "label that is the output, then an input that has this label.",
    }

    shown: int = Field(8, ge=1, le=32, description="tasks shown in a request")
    own_shown: int = Field(2, ge=0, le=16, description="of these, tasks generated earlier")
    likeness: float = Field(
        0.7, gt=0, le=1, description="ROUGE-L with a task of the pool above which a task is not new"
    )
    min_words: int = Field(4, ge=1, description="minimum words of an instruction")
    max_words: int = Field(150, ge=1, description="maximum words of an instruction")
    tasks: int = Field(4, ge=1, le=16, description="maximum new tasks taken from a request")
    asks_a_round: int = Field(
        4, ge=1, le=256, description="requests made before their tasks join the pool"
    )
    max_list_tokens: int = Field(
        512, ge=32, le=4096, description="maximum tokens of a list of tasks"
    )
    max_output_characters: int = Field(
        600, ge=20, le=8000, description="maximum characters of input and output"
    )

    @property
    @override
    def max_requests(self) -> int:
        return 1 + 2 * self.tasks

    @property
    @override
    def max_records(self) -> int:
        return self.tasks

    @property
    @override
    def max_tokens(self) -> int:
        return max(self.max_list_tokens, self.max_output_characters // 2)

    @property
    @override
    def round_size(self) -> int:
        return self.asks_a_round

    @override
    def start(self, corpus: GeneratorContext) -> GeneratorState:
        return _SelfInstructState(self, corpus)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        return self.grow(unit, (), (), NoveltyPool(self.likeness))

    def grow(
        self,
        unit: GenerationUnit,
        seed_tasks: Sequence[str],
        generated_tasks: Sequence[str],
        pool: NoveltyPool,
    ) -> RequestCoroutine[None]:
        """Request tasks modeled on seed and generated ones, and an instance of each new task."""
        rng = unit.rng("shown")
        generated_shown = rng.sample(generated_tasks, min(self.own_shown, len(generated_tasks)))
        shown = generated_shown + rng.sample(
            seed_tasks, min(self.shown - len(generated_shown), len(seed_tasks))
        )
        rng.shuffle(shown)
        listed = "\n".join(f"{number}. {to_one_line(task)}" for number, task in enumerate(shown, 1))
        first = len(shown) + 1
        reply = yield from unit.ask(
            unit.render("tasks", tasks=listed),
            tokens=self.max_list_tokens,
            label="list of tasks",
            prefix=f"{first}.",
            stop=(f"\n{first + self.shown}.", "\n\n"),
        )
        if reply is None:
            return
        num_tasks = 0
        for task in parse_numbered_list(f"{first}. {reply}"):
            reason = self._unfit(task, pool)
            if reason:
                unit.fail(reason, task)
            elif num_tasks < self.tasks:
                num_tasks += 1
                yield from self._instance(unit, task)
            else:
                unit.fail("beyond the tasks taken from an ask", task)

    def _instance(self, unit: GenerationUnit, task: str) -> RequestCoroutine[None]:
        kind = yield from unit.ask_json(unit.render("kind", task=task), _KIND, label="kind of task")
        if kind is None:
            return
        is_label = kind["classification"] == "yes"
        name = "labelled" if is_label else "instance"
        reply = yield from unit.ask_json(
            unit.render(name, task=task), self._schema(is_label), label="instance"
        )
        if reply is None:
            return
        input_text, output = str(reply["input"]).strip(), str(reply["output"]).strip()
        if not output:
            unit.fail("instance without an output", task)
        elif input_text and (
            input_text == output or (len(output) >= _COPIED and input_text.startswith(output))
        ):
            unit.fail("instance whose output is its input", f"{task} | {input_text}")
        elif _FRAME.search(f"{input_text}\n{output}") and not _FRAME.search(task):
            unit.fail("instance that speaks of its prompt", f"{task} | {input_text} | {output}")
        elif is_label and (
            len(split_words(output)) > _LABEL_WORDS or len(output) >= _LABEL_CHARACTERS
        ):
            unit.fail("label that is a text", f"{task} | {output}")
        else:
            prompted = f"{task}\n\n{input_text}" if input_text else task
            fields = {
                "question": prompted,
                "instruction": task,
                "input": input_text,
                "output": output,
                "task_kind": "classification" if is_label else "open",
            }
            unit.add_record(make_qa_messages(prompted, output), fields, is_of_seed=False)

    def _schema(self, is_label: bool) -> dict[str, object]:
        text = {"type": "string", "maxLength": self.max_output_characters}
        if is_label:
            return make_object_schema(output=make_string_schema(_LABEL_CHARACTERS), input=text)
        return make_object_schema(input=text, output=text)

    def _unfit(self, task: str, pool: NoveltyPool) -> str:
        """Return why an instruction is rejected; empty if it is accepted."""
        count = len(split_words(task))
        if not self.min_words <= count <= self.max_words:
            return "task too short or too long"
        if _UNFIT.search(task):
            return "task about what a text model cannot see or do"
        if task.startswith("Write a program") or not task[0].isalnum():
            return "task of a form that is left out"
        return "task too like one of the pool" if pool.max_rouge_l(task) else ""


class _SelfInstructState(GeneratorState):
    """The task pool of one side: the seed tasks, and the tasks generated since."""

    def __init__(self, method: SelfInstruct, corpus: GeneratorContext) -> None:
        self._method = method
        self._seed_tasks = [_task_of(item) for item in corpus.items if isinstance(item, Record)]
        self._seed_tasks = [task for task in self._seed_tasks if task]
        self._generated_tasks: list[str] = []
        self._pool = NoveltyPool(method.likeness)
        for task in self._seed_tasks:
            self._pool.add(task)

    @property
    def round_size(self) -> int:
        return self._method.round_size

    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        def write(unit: GenerationUnit) -> RequestCoroutine[None]:
            return self._method.grow(
                unit, self._seed_tasks, tuple(self._generated_tasks), self._pool
            )

        return CoroutineBatch.of(self._method, write, seeds, model)

    def finalize(self, draft: GenerationResult) -> GenerationResult:
        """Accept the tasks that are new relative to earlier drafts of the same round."""
        records, failures = [], list(draft.failures)
        for record in draft.records:
            task = str(record.fields["instruction"])
            if self._pool.max_rouge_l(task):
                failures.append(GenerationFailure("task too like one of the pool", task))
            else:
                self._pool.add(task)
                self._generated_tasks.append(task)
                records.append(record)
        return replace(draft, records=tuple(records), failures=tuple(failures))


def _task_of(record: Record) -> str:
    """Return a record's instruction, without the input below it."""
    return get_question(record).split("\n\n", 1)[0].strip()
