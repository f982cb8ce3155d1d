"""How near a student is to a teacher with another tokenizer, on held-out records.

Compared is what both say of the same bytes: the bits each needs a byte, and how far apart they find
each common chunk. KL a token, top-1 agreement and calibration against the teacher have no meaning
where there is no common token; the report says so instead of leaving them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from stillroom.distill.cross_lessons import CrossLesson, make_cross_batch
from stillroom.distill.cross_loss import own_logprobs
from stillroom.distill.crossing import CROSSINGS, ChunkCrossing
from stillroom.distill.figures import Figures
from stillroom.distill.head import Head, body_of

__all__ = ["NOT_DEFINED", "CrossFidelity", "CrossRecord", "measure_crossing"]

NOT_DEFINED = (
    "KL(teacher || student) and KL(student || teacher) a token",
    "top-1 agreement and top-5 overlap",
    "calibration against the teacher's distribution",
)
"""What needs one vocabulary, and so is not measured."""


@dataclass(frozen=True, slots=True)
class CrossRecord:
    """One record.

    Args:
        record: Its id.
        teacher_bits: Bits a byte that the teacher needs for the text in common chunks.
        student_bits: The student's, for the same bytes.
        student_nats: Cross-entropy of the student's own tokens, in chunks or not, nats a token.
        gap: Mean of ``|log q - log p|`` over chunks, nats.
        divergence: Mean of the binary KL of each chunk happening or not, nats.
        bytes: Bytes of text in chunks.
        chunks: How many there are, pairs of special tokens included.
        tokens: The student's tokens that bear loss.
    """

    record: str
    teacher_bits: float
    student_bits: float
    student_nats: float
    gap: float
    divergence: float
    bytes: int
    chunks: int
    tokens: int


class CrossFidelity(Figures[CrossRecord]):
    """All records' figures."""

    row = CrossRecord
    measures: ClassVar = {
        "teacher_bits": ("bits/byte", "bytes"),
        "student_bits": ("bits/byte", "bytes"),
        "student_nats": ("nats/token", "tokens"),
        "gap": ("nats/chunk", "chunks"),
        "divergence": ("nats/chunk", "chunks"),
    }
    lines: ClassVar = (
        ("divergence of chunks", "divergence", ""),
        ("distance of chunks' log-probabilities", "gap", ""),
        ("bits for the text in common chunks", "student_bits", "teacher_bits"),
    )
    nearness: ClassVar = "divergence"


def measure_crossing(
    student: Any, lessons: Sequence[CrossLesson], taught: Sequence[npt.NDArray[np.float32]]
) -> CrossFidelity:
    """Compare a student with what a teacher of another tokenizer said of the same text.

    Args:
        student: In evaluation mode.
        lessons: Held-out records in both tokenizations.
        taught: The teacher's log-probabilities at each lesson's ``teacher_positions``, (M,).
    """
    found = [
        _measure(student, lesson, logprobs)
        for lesson, logprobs in zip(lessons, taught, strict=True)
    ]
    return CrossFidelity(tuple(found))


def _measure(student: Any, lesson: CrossLesson, taught: npt.NDArray[np.float32]) -> CrossRecord:
    batch = make_cross_batch([lesson], device=next(student.parameters()).device)
    with torch.inference_mode():
        hidden = body_of(student)(input_ids=batch.student_ids, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1])[batch.flat]
        own = own_logprobs(picked, Head.of(student), batch.labels).double().cpu()
    inside = lesson.chunk_of >= 0
    count = len(lesson.kinds)
    log_q = np.bincount(lesson.chunk_of[inside], own.numpy()[inside], count)
    log_p = np.bincount(lesson.teacher_chunk_of, taught.astype(np.float64), count)
    crossing = CROSSINGS.build("chunk_likelihood")
    if not isinstance(crossing, ChunkCrossing):  # it is one of our own files
        raise TypeError("chunk_likelihood compares chunks")
    divergence, _, _ = crossing.compare(torch.from_numpy(log_q), torch.from_numpy(log_p))
    is_text, size = lesson.sizes > 0, int(lesson.sizes.sum())
    return CrossRecord(
        lesson.record_id,
        -float(log_p[is_text].sum()) / math.log(2) / max(size, 1),
        -float(log_q[is_text].sum()) / math.log(2) / max(size, 1),
        -float(own.mean()) if len(own) else 0.0,
        float(np.abs(log_q - log_p).mean()),
        float(divergence.mean()),
        size,
        count,
        len(own),
    )
