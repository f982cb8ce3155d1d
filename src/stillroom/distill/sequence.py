"""Sequence-level distillation: the student learns from what the teacher wrote, best of n.

Source: Kim and Rush 2016, arXiv:1606.07947, section 3.2. For every record the writer completes the
prompt several times; completions that are empty or cut off fall out, the verifiers judge the rest,
and the best stand in for the record's own answer. The writer need not be the teacher whose
distributions are learned: any model that writes will do, also one behind an endpoint.

Every finished prompt is journaled. A completion depends on its prompt and its seed alone, so that a
killed run goes on to the same records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from stillroom.distill.method import VERIFIERS
from stillroom.distill.verifying import Judgement, Verifier, own_answer
from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.provenance import digest_json
from stillroom.recipes import Reference, Settings
from stillroom.records import Completion, Link, Message, Prompt, Record, Sampling

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Kept", "SequenceSettings", "WriterSettings", "prompt_of", "write_sequences"]

_BLOCK = 8
_JOURNAL = "sequence"


class WriterSettings(Settings):
    """The model that writes, and how its text is drawn."""

    model: Reference | None = Field(
        default=None,
        description="who writes: a checkpoint, a .gguf file or an endpoint; null is the teacher",
    )
    backend: str = Field(default="auto", description="engine that runs the writer")
    num_threads: int | None = Field(default=None, ge=1, description="threads; default all cores")
    temperature: float = Field(default=0.8, ge=0, description="of the draws; 0 is greedy")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="draw from the likeliest tokens of so much mass"
    )
    max_new_tokens: int = Field(default=256, ge=1, description="most tokens of a completion")


class SequenceSettings(WriterSettings):
    """Let the teacher write the answers that are learned from, and keep the best of several."""

    attempts: int = Field(default=4, ge=1, le=256, description="completions drawn for a prompt")
    keep: int = Field(default=1, ge=1, description="how many of them become records, at most")
    instruction: str = Field(
        default="",
        description="added to the last user message when the writer is asked, never learned",
    )
    verifiers: tuple[Annotated[Verifier, VERIFIERS.choice()], ...] = Field(
        default_factory=lambda: (VERIFIERS.build("likelihood"),),
        description="what a completion must pass, in order; the last one's score ranks",
    )
    most_lost: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="the job fails where a larger share of the prompts keeps no completion",
    )

    @model_validator(mode="after")
    def _attempts_differ(self) -> SequenceSettings:
        if self.attempts > 1 and self.temperature == 0:
            raise ValueError("temperature 0 writes the same completion every time; set attempts: 1")
        return self


@dataclass(slots=True)
class Kept:
    """The records that were written, and what became of every completion."""

    records: list[Record] = field(default_factory=list)
    prompts: int = 0
    lost: int = 0
    plain: int = 0
    completions: int = 0
    tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Return the counts by name."""
        return {
            "prompts": self.prompts,
            "prompts_lost": self.lost,
            "plain_texts": self.plain,
            "completions": self.completions,
            "completion_tokens": self.tokens,
            "records": len(self.records),
            "rejected": dict(self.reasons.most_common()),
        }


def prompt_of(record: Record) -> tuple[Message, ...]:
    """Return a conversation up to its last assistant message; empty where nobody asks."""
    messages = record.messages
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return messages


def write_sequences(
    settings: SequenceSettings,
    records: Sequence[Record],
    writer: TextModel,
    job: Job,
    *,
    seed: int,
) -> Kept:
    """Complete every record's prompt and return the records that the best completions make.

    Plain texts, which nobody asks for, stay as they are and are counted.

    Args:
        settings: How many, how drawn, how judged.
        records: To learn from.
        writer: Writes, and scores where a verifier asks it to.
        job: For journal, progress and cancellation.
        seed: Of the draws.

    Raises:
        DataError: If too few prompts keep a completion, or a verifier needs an answer that a record
            lacks.
        BackendError: If the writer fails.
        Cancelled: If the user asked for it; finished prompts are kept.
    """
    asked = [record for record in records if prompt_of(record)]
    _check_answers(settings, asked)
    journal = job.journal(_JOURNAL)
    keys = {record.id: _key(settings, record, writer, seed) for record in asked}
    todo = [record for record in asked if keys[record.id] not in journal]
    done = len(asked) - len(todo)
    with job.phase("sequences", len(asked), "prompts", done=done) as progress:
        for block in _blocks(todo):
            for record, unit in _write_block(settings, block, writer, job, seed):
                journal.put(keys[record.id], unit)
                progress.advance()
    kept = Kept(prompts=len(asked))
    for record in records:
        _collect(kept, record, journal.get(keys.get(record.id, "")), writer)
    _check_loss(settings, kept, job)
    return kept


def _write_block(
    settings: SequenceSettings, block: Sequence[Record], writer: TextModel, job: Job, seed: int
) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Yield each record with its unit: texts kept, best first, and what was counted."""
    job.check_cancelled()
    prompts = [Prompt(_with_instruction(prompt_of(one), settings.instruction)) for one in block]
    count = settings.attempts
    completions = writer.generate(
        [prompt for prompt in prompts for _ in range(count)],
        [_sampling(settings, seed, one, number) for one in block for number in range(count)],
        is_cancelled=job.is_cancelled,
    )
    job.check_cancelled()
    for at, record in enumerate(block):
        own = completions[at * count : (at + 1) * count]
        yield record, _judge(settings, record, prompts[at], own, writer)


def _judge(
    settings: SequenceSettings,
    record: Record,
    prompt: Prompt,
    completions: Sequence[Completion],
    writer: TextModel,
) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    texts: list[str] = []
    for completion in completions:
        text = completion.text.strip()
        if completion.finish_reason == "length":
            reasons["unfinished"] += 1
        elif not text:
            reasons["empty"] += 1
        else:
            texts.append(text)
    scores = [0.0] * len(texts)
    for verifier in settings.verifiers:
        verdicts = verifier.judge(record, prompt, texts, writer) if texts else []
        name = verifier.method_name()
        reasons.update(f"{name}: {one.reason}" for one in verdicts if one.reason)
        texts, scores = _passed(texts, verdicts)
    ranked = sorted(range(len(texts)), key=lambda at: (-scores[at], at))
    best = list(dict.fromkeys(texts[at] for at in ranked))
    reasons["repeated"] += len(texts) - len(best)
    reasons["not the best"] += max(len(best) - settings.keep, 0)
    return {
        "texts": best[: settings.keep],
        "completions": len(completions),
        "tokens": sum(completion.completion_tokens for completion in completions),
        "reasons": dict(+reasons),
    }


def _passed(texts: Sequence[str], verdicts: Sequence[Judgement]) -> tuple[list[str], list[float]]:
    pairs = [(text, one.score) for text, one in zip(texts, verdicts, strict=True) if not one.reason]
    return [text for text, _ in pairs], [score for _, score in pairs]


def _collect(kept: Kept, record: Record, unit: dict[str, Any] | None, writer: TextModel) -> None:
    if unit is None:
        kept.plain += 1
        kept.records.append(record)
        return
    kept.completions += unit["completions"]
    kept.tokens += unit["tokens"]
    kept.reasons.update(unit["reasons"])
    kept.lost += not unit["texts"]
    link = Link("distill.sequence", writer.fingerprint, (record.id,))
    origin = record.origin.then(link, kind="synthetic")
    messages = prompt_of(record)
    kept.records.extend(
        replace(record, messages=(*messages, Message("assistant", text)), origin=origin)
        for text in unit["texts"]
    )


def _with_instruction(messages: tuple[Message, ...], instruction: str) -> tuple[Message, ...]:
    if not instruction:
        return messages
    last = messages[-1]
    return (*messages[:-1], Message(last.role, f"{last.content}\n\n{instruction}"))


def _sampling(settings: SequenceSettings, seed: int, record: Record, number: int) -> Sampling:
    return Sampling(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=int(digest_json(["sequence", seed, record.id, number])[:8], 16) >> 1,
    )


def _key(settings: SequenceSettings, record: Record, writer: TextModel, seed: int) -> str:
    shown = settings.model_dump(mode="json", exclude={"most_lost", "num_threads", "backend"})
    return digest_json([record.id, writer.fingerprint, seed, shown])


def _blocks(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    for at in range(0, len(records), _BLOCK):
        yield records[at : at + _BLOCK]


def _check_answers(settings: SequenceSettings, records: Sequence[Record]) -> None:
    names = [one.method_name() for one in settings.verifiers if one.needs_answer]
    odd = next((record for record in records if not own_answer(record).strip()), None)
    if names and odd is not None:
        raise DataError(
            f"record {odd.id} has no answer of its own, and '{names[0]}' compares with it",
            code="distill.no-answer",
            where=f"record {odd.id}",
            expected="fields.answer, or a last message by the assistant",
            next="use the verifier agreement or likelihood, which need none",
        )


def _check_loss(settings: SequenceSettings, kept: Kept, job: Job) -> None:
    why = ", ".join(f"{count} {reason}" for reason, count in kept.reasons.most_common()) or "none"
    job.say(
        f"{len(kept.records)} records of {kept.prompts} prompts and {kept.completions} completions "
        f"({kept.lost} prompts kept none, {kept.plain} plain texts stay); passed over: {why}"
    )
    if kept.prompts and kept.lost > settings.most_lost * kept.prompts:
        raise DataError(
            f"{kept.lost} of {kept.prompts} prompts kept no completion: {why}",
            code="distill.sequences-lost",
            where="sequence",
            expected=f"at most a share of {settings.most_lost} lost",
            next="raise sequence.attempts or max_new_tokens, or ease the verifiers",
        )
