"""Rationale distillation: the student learns to explain beside learning to answer.

Source: Hsieh et al. 2023 (distilling step by step), arXiv:2305.02301, section 3.2. Every record
becomes two tasks, told apart by a prefix of the question: the answer, and the rationale with a
weight of its own. Only the answer's prefix is used afterwards, so that answers cost no more tokens.
``before_answer`` is the other common form, where one completion holds the rationale and then the
answer. Rationales stand in the records or are written by the teacher, which is told the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from stillroom.distill.sequence import WriterSettings, prompt_of
from stillroom.jobs import Job
from stillroom.provenance import digest_json
from stillroom.recipes import Settings
from stillroom.records import Completion, Link, Message, Prompt, Record, Sampling

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["RationaleSettings", "RationaleWriter", "Tasks", "make_tasks", "write_rationales"]

_BLOCK = 8
_JOURNAL = "rationales"


class RationaleWriter(WriterSettings):
    """Ask a model for the rationales that are missing."""

    instruction: str = Field(
        default="The correct answer is:\n{answer}\n\nExplain step by step why. "
        "Do not add anything after the explanation.",
        description="added to the question; {answer} is the record's own answer",
    )

    @model_validator(mode="after")
    def _names_the_answer(self) -> RationaleWriter:
        if "{answer}" not in self.instruction:
            raise ValueError("'instruction' wants {answer} in it, where the answer is put")
        return self


class RationaleSettings(Settings):
    """Learn rationales beside the answers."""

    field: str = Field(default="rationale", description="the record's field that holds it")
    form: Literal["tasks", "before_answer"] = Field(
        default="tasks",
        description="tasks: two conversations a record, one to answer and one to explain; "
        "before_answer: one completion with the rationale and then the answer",
    )
    weight: float = Field(default=1.0, ge=0, description="of the rationales' loss; form tasks")
    answer_prefix: str = Field(
        default="", description="put before the question where it is answered; form tasks"
    )
    rationale_prefix: str = Field(
        default="Explain how to answer this, step by step.\n\n",
        description="put before the question where it is explained; form tasks",
    )
    between: str = Field(
        default="\n\nThe answer is: ",
        description="between rationale and answer; form before_answer",
    )
    write: RationaleWriter | None = Field(
        default=None, description="who writes rationales that are missing; null nobody"
    )

    @model_validator(mode="after")
    def _tasks_differ(self) -> RationaleSettings:
        if self.form == "tasks" and self.answer_prefix == self.rationale_prefix:
            raise ValueError("'answer_prefix' and 'rationale_prefix' must differ")
        if self.form == "before_answer" and self.weight != 1:
            raise ValueError("'weight' is for form tasks; before_answer has one completion")
        return self


@dataclass(slots=True)
class Tasks:
    """Records to learn from in two groups: answers, and rationales with the weight of theirs."""

    answers: list[Record] = field(default_factory=list)
    rationales: list[Record] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def learned(self) -> list[Record]:
        """All of them, answers first."""
        return [*self.answers, *self.rationales]

    def to_json(self) -> dict[str, Any]:
        """Return what was counted."""
        return dict(self.counts)


def make_tasks(settings: RationaleSettings, records: Sequence[Record]) -> Tasks:
    """Turn each record with a rationale into its tasks; the others keep their answer alone.

    Plain texts, which nobody asks for, stay as they are.
    """
    tasks = Tasks()
    for record in records:
        rationale = _rationale_of(settings, record)
        if not prompt_of(record):
            tasks.counts["plain texts"] += 1
            tasks.answers.append(record)
        elif not rationale:
            tasks.counts["without a rationale"] += 1
            tasks.answers.append(_prefixed(record, settings.answer_prefix))
        elif settings.form == "before_answer":
            tasks.counts["with a rationale"] += 1
            text = rationale + settings.between + record.messages[-1].content
            tasks.answers.append(_completed(record, prompt_of(record), text))
        else:
            tasks.counts["with a rationale"] += 1
            tasks.answers.append(_prefixed(record, settings.answer_prefix))
            asked = _prefixed(record, settings.rationale_prefix)
            tasks.rationales.append(_completed(asked, prompt_of(asked), rationale))
    return tasks


def write_rationales(
    settings: RationaleSettings,
    writer_settings: RationaleWriter,
    records: Sequence[Record],
    writer: TextModel,
    job: Job,
    *,
    seed: int,
) -> list[Record]:
    """Return the records with rationales where they were missing; none is put that is cut off.

    Args:
        settings: Which field holds a rationale.
        writer_settings: How the writer is asked.
        records: To learn from.
        writer: Writes.
        job: For journal, progress and cancellation.
        seed: Of the draws.

    Raises:
        BackendError: If the writer fails.
        Cancelled: If the user asked for it; finished rationales are kept.
    """
    journal = job.journal(_JOURNAL)
    missing = [
        one
        for one in records
        if prompt_of(one) and prompt_of(one) != one.messages and not _rationale_of(settings, one)
    ]
    shown = writer_settings.model_dump(mode="json", exclude={"num_threads", "backend"})
    keys = {one.id: digest_json([one.id, writer.fingerprint, seed, shown]) for one in missing}
    todo = [one for one in missing if keys[one.id] not in journal]
    done = len(missing) - len(todo)
    with job.phase("rationales", len(missing), "records", done=done) as progress:
        for at in range(0, len(todo), _BLOCK):
            block = todo[at : at + _BLOCK]
            job.check_cancelled()
            written = _ask(writer_settings, block, writer, job, seed)
            job.check_cancelled()
            for record, completion in zip(block, written, strict=True):
                journal.put(keys[record.id], completion.to_json())
                progress.advance()
    found, lost = [], 0
    for record in records:
        kept = journal.get(keys.get(record.id, ""))
        text = str(kept["text"]).strip() if kept and kept["finish_reason"] == "stop" else ""
        lost += bool(kept) and not text
        found.append(_with_rationale(settings, record, text, writer) if text else record)
    job.say(f"{len(missing) - lost} rationales were written; {lost} were empty or cut off")
    return found


def _ask(
    settings: RationaleWriter, block: Sequence[Record], writer: TextModel, job: Job, seed: int
) -> list[Completion]:
    prompts = []
    for record in block:
        *before, last = prompt_of(record)
        told = settings.instruction.replace("{answer}", record.messages[-1].content)
        prompts.append(Prompt((*before, Message(last.role, f"{last.content}\n\n{told}"))))
    samplings = [
        Sampling(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=int(digest_json(["rationale", seed, record.id])[:8], 16) >> 1,
        )
        for record in block
    ]
    return writer.generate(prompts, samplings, is_cancelled=job.is_cancelled)


def _rationale_of(settings: RationaleSettings, record: Record) -> str:
    value = record.fields.get(settings.field)
    return value.strip() if isinstance(value, str) else ""


def _with_rationale(
    settings: RationaleSettings, record: Record, text: str, writer: TextModel
) -> Record:
    link = Link("distill.rationale", writer.fingerprint, (record.id,))
    fields = {**record.fields, settings.field: text}
    return replace(record, fields=fields, origin=record.origin.then(link, kind="synthetic"))


def _prefixed(record: Record, prefix: str) -> Record:
    """Return the record with a prefix before the question, its last message by someone else."""
    if not prefix:
        return record
    messages = list(record.messages)
    at = len(prompt_of(record)) - 1
    messages[at] = Message(messages[at].role, prefix + messages[at].content)
    return replace(record, messages=tuple(messages))


def _completed(record: Record, messages: tuple[Message, ...], text: str) -> Record:
    return replace(record, messages=(*messages, Message("assistant", text)))
