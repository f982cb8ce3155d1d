"""How near a student is to a teacher of whom only the likeliest tokens are known.

On held-out records, from what the teacher told once: its k likeliest tokens at every position and
the mass of the rest. The divergences are those of k + 1 outcomes, never above those of the whole
vocabulary; what teacher and student say of the rest stays unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from stillroom.distill.cache import TeacherCache
from stillroom.distill.encode import Lesson, make_batch
from stillroom.distill.engine import slice_target
from stillroom.distill.figures import Figures
from stillroom.distill.head import CHUNK_ROWS, Head, body_of
from stillroom.distill.method import METHODS
from stillroom.distill.targets import TopKTail

__all__ = ["NOTE", "ToldFidelity", "ToldRecord", "measure_told"]

NOTE = (
    "divergences of k + 1 outcomes (the k likeliest tokens and the rest): never above those of the "
    "whole vocabulary"
)


@dataclass(frozen=True, slots=True)
class ToldRecord:
    """One record: means over its assistant tokens, in nats a token; agreement is a share.

    ``teacher_loss`` is the teacher's cross-entropy of the record's own tokens where they are among
    those it told, and at least the rest's mass elsewhere: a lower bound.
    """

    record: str
    kl: float
    reverse_kl: float
    agreement: float
    loss: float
    teacher_loss: float
    tokens: int


class ToldFidelity(Figures[ToldRecord]):
    """All records' figures."""

    row = ToldRecord
    measures: ClassVar = {
        "kl": ("nats/token", "tokens"),
        "reverse_kl": ("nats/token", "tokens"),
        "agreement": ("", "tokens"),
        "loss": ("nats/token", "tokens"),
        "teacher_loss": ("nats/token", "tokens"),
    }
    lines: ClassVar = (
        ("KL(teacher ‖ model)", "kl", ""),
        ("KL(model ‖ teacher)", "reverse_kl", ""),
        ("likeliest token agrees", "agreement", ""),
        ("the teacher's loss on the records' own tokens, at least", "", "teacher_loss"),
    )


def measure_told(student: Any, lessons: Sequence[Lesson], cache: TeacherCache) -> ToldFidelity:
    """Compare a student with what a cache of mode ``top_k`` holds of the same lessons.

    Args:
        student: In evaluation mode.
        lessons: Held-out records, captured as the teacher reads them.
        cache: At temperature 1.
    """
    return ToldFidelity(tuple(_measure(student, lesson, cache) for lesson in lessons))


def _measure(student: Any, lesson: Lesson, cache: TeacherCache) -> ToldRecord:
    head = Head.of(student, cache.header.vocabulary)
    target = cache.target([lesson.by_teacher], head.weight.device)
    if not isinstance(target, TopKTail):
        raise TypeError("fidelity is measured on the likeliest tokens and the rest")
    batch = make_batch([lesson], None, head.weight.device)
    forward, reverse = METHODS.build("forward_kl"), METHODS.build("reverse_kl")
    sums = torch.zeros(5, dtype=torch.float64)
    with torch.inference_mode():
        hidden = body_of(student)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1])[batch.flat]
        for start in range(0, len(picked), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            logits, labels = head.logits(picked[part]), batch.labels[part]
            told = slice_target(target, start, start + CHUNK_ROWS)
            if not isinstance(told, TopKTail):
                raise TypeError("a slice keeps its form")
            own = logits.log_softmax(-1).gather(-1, labels[:, None])
            is_told = told.ids == labels[:, None]
            taught = torch.where(is_told, told.logprobs, 0.0).sum(-1)
            taught = torch.where(is_told.any(-1), taught, told.tail)
            sums += torch.stack(
                [
                    forward.divergence(logits, told)[0].double().sum(),
                    reverse.divergence(logits, told)[0].double().sum(),
                    (logits.argmax(-1) == told.ids[:, 0]).double().sum(),
                    -own.double().sum(),
                    -taught.double().sum(),
                ]
            ).cpu()
    count = len(lesson.positions)
    kl, reverse_kl, agreement, loss, teacher_loss = (sums / max(count, 1)).tolist()
    return ToldRecord(lesson.record_id, kl, reverse_kl, agreement, loss, teacher_loss, count)
