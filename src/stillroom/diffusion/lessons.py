"""Records as tokens, with the places that may be noised: answers alone, or all that is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.evaluate.spans import encode_record
from stillroom.records import Record

__all__ = ["Counts", "Lesson", "encode_lessons"]


@dataclass(frozen=True, slots=True)
class Lesson:
    """One record as tokens.

    Args:
        record_id: The record's.
        ids: (T,), int64.
        turns: First and last + 1 token of each run that may be noised: an answer each, or one.
    """

    record_id: str
    ids: npt.NDArray[np.int64]
    turns: tuple[tuple[int, int], ...]

    @property
    def noised(self) -> npt.NDArray[np.bool_]:
        """Which tokens may be noised, all turns together, (T,)."""
        found = np.zeros(len(self.ids), dtype=np.bool_)
        for start, stop in self.turns:
            found[start:stop] = True
        return found


@dataclass(slots=True)
class Counts:
    """What encoding did."""

    records: int = 0
    cut: int = 0
    left_out: int = 0
    tokens: int = 0
    tokens_cut: int = 0
    noised: int = 0

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return {
            "records": self.records,
            "records_cut": self.cut,
            "records_left_out": self.left_out,
            "tokens": self.tokens,
            "tokens_cut": self.tokens_cut,
            "tokens_noised": self.noised,
        }


def encode_lessons(
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int,
    include_prompt: bool,
    first: int,
    on_done: Callable[[], None] | None = None,
) -> tuple[list[Lesson], Counts]:
    """Return the records as lessons, and what was cut or left out.

    Args:
        tokenizer: A fast tokenizer.
        records: Conversations, or plain text as a lone assistant message.
        max_tokens: Tokens that are kept of a record, from its start.
        include_prompt: Noise all that is said, not the answers alone.
        first: The first place that may be noised: 1 where logits are shifted.
        on_done: Called after each record.

    Raises:
        DataError: If a chat template hides the assistant's part.
    """
    lessons, counts = [], Counts()
    for record in records:
        encoded = encode_record(tokenizer, record, max_tokens=max_tokens)
        counts.cut += bool(encoded.truncated)
        counts.tokens_cut += encoded.truncated
        marks = np.asarray(encoded.is_assistant, dtype=np.bool_)
        if include_prompt:
            special = set(getattr(tokenizer, "all_special_ids", ()))
            begins = len(encoded.ids) > 0 and encoded.ids[0] in special
            marks = np.ones(len(encoded.ids), dtype=np.bool_)
            marks[: int(begins)] = False
        marks[:first] = False
        turns = _runs(marks)
        if turns:
            lesson = Lesson(record.id, np.asarray(encoded.ids, dtype=np.int64), turns)
            lessons.append(lesson)
            counts.records += 1
            counts.tokens += len(lesson.ids)
            counts.noised += int(marks.sum())
        else:
            counts.left_out += 1
        if on_done:
            on_done()
    return lessons, counts


def _runs(marks: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Return first and last + 1 of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
    return tuple((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))
