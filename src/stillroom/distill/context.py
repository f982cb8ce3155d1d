"""Self-distillation through context: the teacher reads more than the student does.

Source: Snell et al. 2022, arXiv:2209.15189, section 2 (learning by distilling context). Teacher and
student may be the same checkpoint: the teacher answers with a passage, an example or instructions
before it, the student learns the same distributions without them. Only the assistant's tokens are
compared; they are the same on both sides, at other positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from stillroom.distill.sequence import prompt_of
from stillroom.errors import DataError
from stillroom.recipes import Settings
from stillroom.records import Message, Record

if TYPE_CHECKING:
    from stillroom.distill.encode import Lesson
    from stillroom.evaluate.spans import Encoded

__all__ = ["ContextSettings", "add_context", "hear_record", "hear_with_context"]


class ContextSettings(Settings):
    """What the teacher reads that the student does not."""

    field: str | None = Field(
        default=None, description="the record's field that holds it; null where 'text' is enough"
    )
    text: str = Field(
        default="{context}\n\n",
        description="put before the last question; {context} is the record's field",
    )
    max_tokens: int = Field(
        default=2048, ge=2, description="most tokens that the teacher reads of a record"
    )

    @model_validator(mode="after")
    def _says_something(self) -> ContextSettings:
        if ("{context}" in self.text) != (self.field is not None):
            raise ValueError("'field' and {context} within 'text' belong together")
        if not self.text.strip():
            raise ValueError("'text' is empty: the teacher would read what the student reads")
        return self


def add_context(settings: ContextSettings, record: Record) -> Record | None:
    """Return the record as the teacher reads it, or None where the field is missing or empty."""
    prompt = prompt_of(record)
    value = record.fields.get(settings.field) if settings.field is not None else ""
    if not prompt or not isinstance(value, str) or (settings.field and not value.strip()):
        return None
    text = settings.text.replace("{context}", value)
    at = len(prompt) - 1
    messages = list(record.messages)
    messages[at] = Message(messages[at].role, text + messages[at].content)
    return replace(record, messages=tuple(messages))


def hear_record(
    settings: ContextSettings, tokenizer: Any, record: Record, own: Encoded
) -> Encoded | None:
    """Return a record's tokens as the teacher reads them, or None where they do not fit.

    Args:
        settings: What is added.
        tokenizer: Of both.
        record: As the student reads it.
        own: Its tokens as the student reads them; may be cut.

    Returns:
        Tokens whose first targets are ``own``'s; None without a context, where the record with it
        is too long, or where the answer has other tokens there.

    Raises:
        DataError: If the assistant's part of the conversation cannot be found.
    """
    from stillroom.evaluate.spans import encode_record  # torch, which a recipe is read without

    told = add_context(settings, record)
    if told is None:
        return None
    encoded = encode_record(tokenizer, told, max_tokens=settings.max_tokens)
    count = len(own.targets)
    labels = [encoded.ids[at] for at in encoded.targets[:count]]
    return encoded if labels == [own.ids[at] for at in own.targets] else None


def hear_with_context(
    settings: ContextSettings, tokenizer: Any, records: Sequence[Record], lessons: Sequence[Lesson]
) -> tuple[list[Lesson], dict[str, int]]:
    """Give each lesson what the teacher reads; those that cannot have it are left out and counted.

    Args:
        settings: What is added.
        tokenizer: Of both.
        records: What the lessons were made of, in any order.
        lessons: The student's, with the assistant's tokens alone.

    Raises:
        DataError: If no lesson is left.
    """
    from stillroom.distill.encode import Lesson  # torch, which a recipe is read without
    from stillroom.evaluate.spans import encode_record

    by_id = {record.id: record for record in records}
    found: list[Lesson] = []
    counts = {"without_context": 0, "too_long": 0, "other_tokens": 0}
    for lesson in lessons:
        record = add_context(settings, by_id[lesson.record_id])
        if record is None:
            counts["without_context"] += 1
            continue
        encoded = encode_record(tokenizer, record, max_tokens=settings.max_tokens)
        positions = np.asarray([at - 1 for at in encoded.targets], dtype=np.int64)
        heard = Lesson(lesson.record_id, np.asarray(encoded.ids, dtype=np.int64), positions)
        if encoded.truncated:
            counts["too_long"] += 1
        elif not np.array_equal(heard.labels[: len(lesson.labels)], lesson.labels):
            counts["other_tokens"] += 1
        else:
            kept = replace(heard, positions=positions[: len(lesson.labels)])
            found.append(replace(lesson, heard=kept))
    if not found:
        raise DataError(
            f"no record can be read with its context: {counts}",
            code="distill.no-context",
            where="context",
            expected=f"records with text in fields.{settings.field}",
            next="check context.field, or raise context.max_tokens",
        )
    return found, counts
