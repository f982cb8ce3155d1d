"""Distance of a model to a teacher known only by stored log-probabilities.

Where a teacher stands in this process over the same tokens, whole distributions are compared
(``measuring``). Everywhere else it was asked once, and each of these holds what it said: its
likeliest tokens, or how likely it finds its own tokens of the same text.

On held-out records, from what the teacher told once: its k likeliest tokens at every position and
the mass of the rest. The divergences are those of k + 1 outcomes, never above those of the whole
vocabulary; what teacher and student say of the rest stays unknown.

Compared is what both say of the same bytes: the bits each needs a byte, and how far apart they find
each common chunk. KL a token, top-1 agreement and calibration against the teacher have no meaning
where there is no common token; the report says so instead of leaving them out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch

from stillroom.distill.cross_tokenizer.data import AlignedRecord, make_aligned_batch
from stillroom.distill.data.tokenized import TokenizedRecord, make_batch
from stillroom.distill.evaluation.metrics import RecordMetrics
from stillroom.distill.interfaces import CROSS_TOKENIZER_LOSSES, METHODS, ChunkLoss
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.losses.lm_head import CHUNK_ROWS, LMHead, compute_token_logprobs, get_body
from stillroom.distill.losses.targets import TopKTargets, slice_target

__all__ = [
    "TOP_K_NOTE",
    "UNDEFINED_METRICS",
    "AlignedReference",
    "CrossTokenizerFidelity",
    "CrossTokenizerRecord",
    "TeacherReference",
    "TopKFidelity",
    "TopKRecord",
    "TopKReference",
    "measure_cross_tokenizer",
    "measure_top_k",
]


TOP_K_NOTE = (
    "divergences of k + 1 outcomes (the k likeliest tokens and the rest): never above those of the "
    "whole vocabulary"
)


@dataclass(frozen=True, slots=True)
class TopKRecord:
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


class TopKFidelity(RecordMetrics[TopKRecord]):
    """All records' figures."""

    row = TopKRecord
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


def measure_top_k(
    student: Any, lessons: Sequence[TokenizedRecord], cache: LogitCache
) -> TopKFidelity:
    """Compare a student with what a cache of mode ``top_k`` holds of the same lessons.

    Args:
        student: In evaluation mode.
        lessons: Held-out records, captured as the teacher reads them.
        cache: At temperature 1.
    """
    return TopKFidelity(tuple(_measure_top_k_record(student, lesson, cache) for lesson in lessons))


def _measure_top_k_record(student: Any, lesson: TokenizedRecord, cache: LogitCache) -> TopKRecord:
    head = LMHead.of(student, cache.header.vocabulary)
    target = cache.target([lesson.by_teacher], head.weight.device)
    if not isinstance(target, TopKTargets):
        raise TypeError("fidelity is measured on the likeliest tokens and the rest")
    batch = make_batch([lesson], None, head.weight.device)
    forward, reverse = METHODS.build("forward_kl"), METHODS.build("reverse_kl")
    sums = torch.zeros(5, dtype=torch.float64)
    with torch.inference_mode():
        hidden = get_body(student)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1])[batch.flat]
        for start in range(0, len(picked), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            logits, labels = head.logits(picked[part]), batch.labels[part]
            told = slice_target(target, start, start + CHUNK_ROWS)
            if not isinstance(told, TopKTargets):
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
    return TopKRecord(lesson.record_id, kl, reverse_kl, agreement, loss, teacher_loss, count)


UNDEFINED_METRICS = (
    "KL(teacher || student) and KL(student || teacher) a token",
    "top-1 agreement and top-5 overlap",
    "calibration against the teacher's distribution",
)


"""What needs one vocabulary, and so is not measured."""


@dataclass(frozen=True, slots=True)
class CrossTokenizerRecord:
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


class CrossTokenizerFidelity(RecordMetrics[CrossTokenizerRecord]):
    """All records' figures."""

    row = CrossTokenizerRecord
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


def measure_cross_tokenizer(
    student: Any, lessons: Sequence[AlignedRecord], taught: Sequence[npt.NDArray[np.float32]]
) -> CrossTokenizerFidelity:
    """Compare a student with what a teacher of another tokenizer said of the same text.

    Args:
        student: In evaluation mode.
        lessons: Held-out records in both tokenizations.
        taught: The teacher's log-probabilities at each lesson's ``teacher_positions``, (M,).
    """
    found = [
        _measure_aligned(student, lesson, logprobs)
        for lesson, logprobs in zip(lessons, taught, strict=True)
    ]
    return CrossTokenizerFidelity(tuple(found))


def _measure_aligned(
    student: Any, lesson: AlignedRecord, taught: npt.NDArray[np.float32]
) -> CrossTokenizerRecord:
    batch = make_aligned_batch([lesson], device=next(student.parameters()).device)
    with torch.inference_mode():
        hidden = get_body(student)(input_ids=batch.student_ids, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1])[batch.flat]
        own = compute_token_logprobs(picked, LMHead.of(student), batch.labels).double().cpu()
    inside = lesson.chunk_of >= 0
    count = len(lesson.kinds)
    log_q = np.bincount(lesson.chunk_of[inside], own.numpy()[inside], count)
    log_p = np.bincount(lesson.teacher_chunk_of, taught.astype(np.float64), count)
    crossing = CROSS_TOKENIZER_LOSSES.build("chunk_likelihood")
    if not isinstance(crossing, ChunkLoss):  # it is one of our own files
        raise TypeError("chunk_likelihood compares chunks")
    divergence, _, _ = crossing.compare(torch.from_numpy(log_q), torch.from_numpy(log_p))
    is_text, size = lesson.sizes > 0, int(lesson.sizes.sum())
    return CrossTokenizerRecord(
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


class TeacherReference(Protocol):
    """What was heard of one teacher, ready to measure any model on."""

    @property
    def name(self) -> str:
        """The teacher's."""

    @property
    def note(self) -> str:
        """What the figures are, in a sentence; may be empty."""

    @property
    def figures(self) -> type[RecordMetrics[Any]]:
        """What is measured."""

    def measure(self, model: Any) -> RecordMetrics[Any]:
        """Return how far a model in evaluation mode is from the teacher, by record."""


@dataclass(frozen=True)
class TopKReference:
    """A teacher of the same vocabulary: its likeliest tokens at temperature 1, and the rest."""

    name: str
    lessons: Sequence[TokenizedRecord]
    told: LogitCache
    note: str = f"Its figures are {TOP_K_NOTE}."
    figures: type[RecordMetrics[Any]] = TopKFidelity

    def measure(self, model: Any) -> RecordMetrics[Any]:
        """Return the divergences of k + 1 outcomes."""
        return measure_top_k(model, self.lessons, self.told)


@dataclass(frozen=True)
class AlignedReference:
    """A teacher of another vocabulary: the log-probabilities of its own tokens."""

    name: str
    lessons: Sequence[AlignedRecord]
    heard: Mapping[str, npt.NDArray[np.float32]]
    note: str = (
        "Across tokenizers the same bytes are compared; not defined are: "
        f"{'; '.join(UNDEFINED_METRICS)}."
    )
    figures: type[RecordMetrics[Any]] = CrossTokenizerFidelity

    def measure(self, model: Any) -> RecordMetrics[Any]:
        """Return how far both are apart on the same bytes."""
        taught = [self.heard[lesson.key] for lesson in self.lessons]
        return measure_cross_tokenizer(model, self.lessons, taught)
