"""Distance of a model to a teacher known only by stored log-probabilities.

A teacher in this process with the same vocabulary is compared by full distributions
(``measurement``). For any other teacher one of two references is stored once:

Top-k: on held-out records, the k most likely tokens at every position and the mass of the rest. The
divergences are over k + 1 outcomes and never exceed those of the full vocabulary.

Aligned: for a teacher with another tokenizer, both models are compared on the same bytes: bits per
byte, and the difference of the log-probabilities of each common chunk. KL per token, top-1
agreement and calibration against the teacher are undefined without common tokens, and the report
states so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from stillroom.distill.cross_tokenizer.data import AlignedRecord, make_aligned_batch
from stillroom.distill.cross_tokenizer_losses.chunk_likelihood import ChunkLikelihood
from stillroom.distill.data.tokenized import TokenizedRecord, make_batch
from stillroom.distill.evaluation.metrics import RecordMetrics
from stillroom.distill.interfaces import METHODS
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.losses.lm_head import (
    CHUNK_ROWS,
    LMHead,
    compute_hidden,
    compute_token_logprobs,
)
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
]

TOP_K_NOTE = (
    "divergences of k + 1 outcomes (the k likeliest tokens and the rest): never above those of the "
    "whole vocabulary"
)


@dataclass(frozen=True, slots=True)
class TopKRecord:
    """One record: means over its assistant tokens, in nats per token; agreement is a share.

    ``teacher_loss`` is the teacher's cross-entropy of the record's tokens; a token outside of the k
    most likely counts with the mass of the rest, so the value is a lower bound.
    """

    record: str
    kl: float
    reverse_kl: float
    agreement: float
    loss: float
    teacher_loss: float
    tokens: int


class TopKFidelity(RecordMetrics[TopKRecord]):
    """Top-k metrics of all records."""

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


def _measure_top_k_record(student: Any, record: TokenizedRecord, cache: LogitCache) -> TopKRecord:
    head = LMHead.of(student, cache.header.vocabulary)
    target = cache.target([record.teacher_view], head.weight.device)
    if not isinstance(target, TopKTargets):
        raise TypeError("fidelity is measured on the likeliest tokens and the rest")
    batch = make_batch([record], None, head.weight.device)
    forward, reverse = METHODS.build("forward_kl"), METHODS.build("reverse_kl")
    sums = torch.zeros(5, dtype=torch.float64)
    with torch.inference_mode():
        picked = compute_hidden(student, batch.input_ids, batch.flat)
        for start in range(0, len(picked), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            logits, labels = head.logits(picked[part]), batch.labels[part]
            part_target = slice_target(target, start, start + CHUNK_ROWS)
            if not isinstance(part_target, TopKTargets):
                raise TypeError("a slice keeps its form")
            student_logprobs = logits.log_softmax(-1).gather(-1, labels[:, None])
            is_in_top_k = part_target.ids == labels[:, None]
            teacher_logprobs = torch.where(is_in_top_k, part_target.logprobs, 0.0).sum(-1)
            teacher_logprobs = torch.where(is_in_top_k.any(-1), teacher_logprobs, part_target.tail)
            sums += torch.stack(
                [
                    forward.divergence(logits, part_target)[0].double().sum(),
                    reverse.divergence(logits, part_target)[0].double().sum(),
                    (logits.argmax(-1) == part_target.ids[:, 0]).double().sum(),
                    -student_logprobs.double().sum(),
                    -teacher_logprobs.double().sum(),
                ]
            ).cpu()
    count = len(record.positions)
    kl, reverse_kl, agreement, loss, teacher_loss = (sums / max(count, 1)).tolist()
    return TopKRecord(record.record_id, kl, reverse_kl, agreement, loss, teacher_loss, count)


UNDEFINED_METRICS = (
    "KL(teacher || student) and KL(student || teacher) a token",
    "top-1 agreement and top-5 overlap",
    "calibration against the teacher's distribution",
)
"""Metrics that require a common vocabulary, and are not measured."""


@dataclass(frozen=True, slots=True)
class CrossTokenizerRecord:
    """One record.

    Args:
        record: Id of the record.
        teacher_bits: Teacher's bits per byte for the text in common chunks.
        student_bits: Student's bits per byte for the same bytes.
        student_nats: Cross-entropy of all the student's tokens, in nats per token.
        gap: Mean of ``|log q - log p|`` over chunks, in nats.
        divergence: Mean binary KL over chunks, in nats.
        bytes: Bytes of text in chunks.
        chunks: Number of chunks, including pairs of special tokens.
        tokens: Number of the student's loss positions.
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
    """Cross-tokenizer metrics of all records."""

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


def _measure_aligned(
    student: Any, record: AlignedRecord, teacher_logprobs: npt.NDArray[np.float32]
) -> CrossTokenizerRecord:
    batch = make_aligned_batch([record], device=next(student.parameters()).device)
    with torch.inference_mode():
        picked = compute_hidden(student, batch.student_ids, batch.flat)
        student_logprobs = (
            compute_token_logprobs(picked, LMHead.of(student), batch.labels).double().cpu()
        )
    inside = record.chunk_of >= 0
    count = len(record.kinds)
    log_q = np.bincount(record.chunk_of[inside], student_logprobs.numpy()[inside], count)
    log_p = np.bincount(record.teacher_chunk_of, teacher_logprobs.astype(np.float64), count)
    likelihood = ChunkLikelihood()
    divergence, _, _ = likelihood.compare(torch.from_numpy(log_q), torch.from_numpy(log_p))
    is_text, size = record.sizes > 0, int(record.sizes.sum())
    return CrossTokenizerRecord(
        record.record_id,
        -float(log_p[is_text].sum()) / math.log(2) / max(size, 1),
        -float(log_q[is_text].sum()) / math.log(2) / max(size, 1),
        -float(student_logprobs.mean()) if len(student_logprobs) else 0.0,
        float(np.abs(log_q - log_p).mean()),
        float(divergence.mean()),
        size,
        count,
        len(student_logprobs),
    )


@dataclass(frozen=True)
class TopKReference:
    """Teacher with the same vocabulary: top-k tokens at temperature 1, and the rest."""

    name: str
    records: Sequence[TokenizedRecord]
    cache: LogitCache
    note: str = f"Its figures are {TOP_K_NOTE}."
    figures: type[RecordMetrics[Any]] = TopKFidelity

    def measure(self, model: Any) -> RecordMetrics[Any]:
        """Return divergences over k + 1 outcomes."""
        rows = (_measure_top_k_record(model, record, self.cache) for record in self.records)
        return TopKFidelity(tuple(rows))


@dataclass(frozen=True)
class AlignedReference:
    """Teacher with another vocabulary: log-probabilities of its labels."""

    name: str
    records: Sequence[AlignedRecord]
    logprobs: Mapping[str, npt.NDArray[np.float32]]
    note: str = (
        "Across tokenizers the same bytes are compared; not defined are: "
        f"{'; '.join(UNDEFINED_METRICS)}."
    )
    figures: type[RecordMetrics[Any]] = CrossTokenizerFidelity

    def measure(self, model: Any) -> RecordMetrics[Any]:
        """Return the distance on the same bytes."""
        rows = (
            _measure_aligned(model, record, self.logprobs[record.key]) for record in self.records
        )
        return CrossTokenizerFidelity(tuple(rows))


TeacherReference = TopKReference | AlignedReference
"""Stored outputs of one teacher, for measuring any model."""
