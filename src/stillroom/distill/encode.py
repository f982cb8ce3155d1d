"""Records as tokens with the positions that bear loss, and micro-batches of them.

The positions come from spans of the rendered text, never from token ids: a tokenizer whose padding
token is its end-of-turn token would otherwise lose every end of turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.distill.targets import Target
from stillroom.evaluate.spans import encode_record
from stillroom.provenance import digest_json
from stillroom.records import Record

if TYPE_CHECKING:
    from stillroom.distill.rollout_batch import Drawn

__all__ = ["Batch", "Counts", "Lesson", "encode_lessons", "make_batch"]


@dataclass(frozen=True, slots=True)
class Lesson:
    """One record as tokens: ids (T,), and the positions whose next token bears loss, (N,).

    Args:
        record_id: The record's.
        ids: Of the whole text.
        positions: Rising.
        weight: The loss of every position is multiplied by it; it is not divided by it again.
        heard: The same labels as the teacher reads them, where it reads more than the student.
    """

    record_id: str
    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    weight: float = 1.0
    heard: Lesson | None = None

    @property
    def by_teacher(self) -> Lesson:
        """The lesson as the teacher reads it."""
        return self.heard or self

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The next token at each position, (N,)."""
        return self.ids[self.positions + 1]

    @property
    def key(self) -> str:
        """What the teacher's rows of this lesson follow from: tokens and positions."""
        return digest_json([self.ids.tolist(), self.positions.tolist()])

    @property
    def name(self) -> str:
        """What its loss follows from: both readings, and its weight."""
        return digest_json([self.key, self.by_teacher.key, self.weight])


@dataclass(slots=True)
class Counts:
    """What encoding did: records kept, cut, left out; tokens kept and cut off."""

    records: int = 0
    cut: int = 0
    left_out: int = 0
    tokens: int = 0
    tokens_cut: int = 0
    positions: int = 0

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return {
            "records": self.records,
            "records_cut": self.cut,
            "records_left_out": self.left_out,
            "tokens": self.tokens,
            "tokens_cut": self.tokens_cut,
            "positions": self.positions,
        }


@dataclass(frozen=True, slots=True)
class Batch:
    """Several lessons, padded on the right, with the positions that bear loss in one row.

    Args:
        input_ids: (B, T), int64; padding is causally invisible, so no attention mask is needed.
        flat: Indices into (B * T) of the N positions that bear loss.
        labels: Next tokens there, (N,).
        target: What the teacher says there; None where the teacher is run instead.
        weights: What each position's loss is multiplied by, (N,); None is 1 everywhere.
        rollout: (N,), True where the position stands in the student's own text; None where no text
            is.
        heard: What the teacher reads in place of ``input_ids`` (B, T'), and its ``flat``.
        drawn: How the tokens of that text were drawn; None where no text is.
    """

    input_ids: Tensor
    flat: Tensor
    labels: Tensor
    record_ids: tuple[str, ...]
    tokens: int
    target: Target | None = None
    weights: Tensor | None = None
    rollout: Tensor | None = None
    heard: tuple[Tensor, Tensor] | None = None
    drawn: Drawn | None = None

    @property
    def valid(self) -> int:
        """Number of positions that bear loss."""
        return int(self.flat.shape[0])


def encode_lessons(
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int,
    include_prompt: bool,
    on_done: Callable[[], None] | None = None,
) -> tuple[list[Lesson], Counts]:
    """Return the records as lessons, and what was cut or left out.

    A record none of whose positions bears loss within ``max_tokens`` is left out and counted.

    Raises:
        DataError: If a chat template hides the assistant's part.
    """
    lessons, counts = [], Counts()
    for record in records:
        encoded = encode_record(tokenizer, record, max_tokens=max_tokens)
        counts.cut += bool(encoded.truncated)
        counts.tokens_cut += encoded.truncated
        targets = range(1, len(encoded.ids)) if include_prompt else encoded.targets
        positions = np.asarray([at - 1 for at in targets], dtype=np.int64)
        if len(encoded.targets) == 0 or len(positions) == 0:
            counts.left_out += 1
        else:
            lesson = Lesson(record.id, np.asarray(encoded.ids, dtype=np.int64), positions)
            lessons.append(lesson)
            counts.records += 1
            counts.tokens += len(lesson.ids)
            counts.positions += len(positions)
        if on_done:
            on_done()
    return lessons, counts


def make_batch(
    lessons: Sequence[Lesson], target: Target | None, device: torch.device | None = None
) -> Batch:
    """Pad lessons to one width and gather their positions; ``target`` has one row for each."""
    ids, flat = _pad(lessons, device)
    weights = None
    if any(lesson.weight != 1 for lesson in lessons):
        parts = [np.full(len(lesson.positions), lesson.weight, np.float32) for lesson in lessons]
        weights = torch.from_numpy(np.concatenate(parts)).to(device)
    is_heard = target is None and any(lesson.heard is not None for lesson in lessons)
    return Batch(
        ids,
        flat,
        torch.from_numpy(np.concatenate([lesson.labels for lesson in lessons])).to(device),
        tuple(lesson.record_id for lesson in lessons),
        sum(len(lesson.ids) for lesson in lessons),
        target,
        weights,
        heard=_pad([lesson.by_teacher for lesson in lessons], device) if is_heard else None,
    )


def _pad(lessons: Sequence[Lesson], device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Return ids (B, T), padded on the right, and the places of all positions in (B * T)."""
    width = max(len(lesson.ids) for lesson in lessons)
    ids = np.zeros((len(lessons), width), dtype=np.int64)
    flat = []
    for row, lesson in enumerate(lessons):
        ids[row, : len(lesson.ids)] = lesson.ids
        flat.append(lesson.positions + row * width)
    return torch.from_numpy(ids).to(device), torch.from_numpy(np.concatenate(flat)).to(device)
