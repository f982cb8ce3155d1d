"""Collators that turn rollouts into micro-batches, for one vocabulary or two.

``RolloutBatchSource`` selects the text of each step; a collator gives it the form of the loss.

One vocabulary (``SameTokenizerCollator``, ``EndpointTargets``): a teacher behind an endpoint is
queried for top-k tokens once per text, before the step that uses it. Its outputs are cached, those
for records in the shared logit cache and those for rollouts in a cache of the job. A resumed job
queries only what neither contains, and produces the same bytes.

Two vocabularies (``CrossTokenizerCollator``): the student generates, the teacher reads the same
text in its own tokenization, and a cross-tokenizer loss compares the two. After Patiño et al. 2025
(GOLD, general on-policy logit distillation); differs in that the student's side is the sampled
token sequence itself, never its text tokenized again, and both sides are aligned by bytes
(``alignment``). A rollout that stops within a character has loss only up to there; one with nothing
to compare is skipped, and both are logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.distill.cross_tokenizer.alignment import align, find_shared_spans
from stillroom.distill.cross_tokenizer.data import (
    AlignedBatch,
    AlignedRecord,
    TokenizerView,
    get_row_pairing,
    make_aligned_batch,
    make_aligned_record,
    render_record,
)
from stillroom.distill.cross_tokenizer.spans import TokenSpans, match_tokens
from stillroom.distill.data.tokenized import Batch, SamplingInfo, TokenizedRecord, make_batch
from stillroom.distill.interfaces import CrossTokenizerLoss
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.losses.targets import Targets, concatenate_targets
from stillroom.distill.on_policy.rollout import OnPolicyPrompt, Rollout, TokenizedRollout
from stillroom.distill.teachers.endpoint import EndpointTeacher
from stillroom.jobs import Job
from stillroom.models import render_chat
from stillroom.models.tokenization.token_bytes import TEXT
from stillroom.records import Message, Record

__all__ = [
    "AlignedRollout",
    "CrossTokenizerCollator",
    "EndpointTargets",
    "RolloutCollator",
    "SameTokenizerCollator",
    "make_rollout_batch",
]


class SameTokenizerCollator:
    """Collator for teacher and student with one vocabulary."""

    def __init__(self, targets: EndpointTargets | None = None) -> None:
        """Initialize the collator.

        Args:
            targets: Source of the teacher's targets, if it does not run in every step and the
                method needs them.
        """
        self._targets = targets

    def convert(
        self, rollout: Rollout, prompt: OnPolicyPrompt, credit: npt.NDArray[np.float32] | None
    ) -> TokenizedRecord:
        """Return the rollout as a tokenized record."""
        return rollout.to_tokenized(prompt, credit)

    def teacher_view(self, rollout: Rollout, prompt: OnPolicyPrompt) -> TokenizedRecord:
        """Return the rollout as a tokenized record: the teacher reads the same tokens."""
        return rollout.to_tokenized(prompt)

    def student_view(self, item: TokenizedRecord) -> TokenizedRecord:
        """Return the item."""
        return item

    def fetch(self, items: Sequence[TokenizedRecord]) -> None:
        """Query the endpoint for uncached items."""
        if self._targets is not None:
            self._targets.fetch(items)

    def batch(self, items: Sequence[TokenizedRecord], device: torch.device) -> Batch:
        """Return a micro-batch, with targets of the endpoint if there is one."""
        target = self._targets.target(items, device) if self._targets is not None else None
        return make_rollout_batch(items, device, target)

    def metrics(self, found: Sequence[TokenizedRecord | None]) -> Mapping[str, float]:
        """Return no metrics: every rollout can be used."""
        return {}


def make_rollout_batch(
    records: Sequence[TokenizedRecord],
    device: torch.device | None = None,
    target: Targets | None = None,
) -> Batch:
    """Return a micro-batch of rollouts and records that marks the student's text.

    Args:
        records: Tokenized rollouts and records.
        device: Device of the student.
        target: Teacher's targets at their positions; None if it is run, or not needed.
    """
    plain = make_batch(records, target, device)

    def join(name: str, kind: Any) -> Tensor:
        parts = []
        for record in records:
            values = getattr(record, name) if isinstance(record, TokenizedRollout) else None
            parts.append(np.zeros(len(record.positions), kind) if values is None else values)
        return torch.from_numpy(np.concatenate(parts)).to(device)

    sampling = SamplingInfo(
        *(join(name, np.float32) for name in ("old", "importance", "gains", "credit"))
    )
    return replace(plain, rollout=join("own", np.bool_), sampling=sampling)


class EndpointTargets:
    """Endpoint targets of records and rollouts; call ``fetch`` before ``target``."""

    def __init__(
        self, teacher: EndpointTeacher, job: Job, records: LogitCache, rollouts: LogitCache
    ) -> None:
        """Initialize with two caches; callers use ``open``."""
        self.teacher, self.job = teacher, job
        self._records, self._rollouts = records, rollouts

    @classmethod
    @contextmanager
    def open(
        cls, teacher: EndpointTeacher, job: Job, records: LogitCache
    ) -> Iterator[EndpointTargets]:
        """Open the job's cache of rollouts next to that of the records.

        Args:
            teacher: Endpoint teacher.
            job: Job, for its scratch folder and log.
            records: Cache of the records; read only.

        Raises:
            DataError: If the endpoint's outputs have changed since the job began.
        """
        folder = job.scratch / "rollout-cache"
        with LogitCache.open(folder, records.header, on_damage=job.warn_of_damage) as rollouts:
            teacher.check_unchanged(rollouts)
            with teacher.log_usage(job), rollouts.writing():
                yield cls(teacher, job, records, rollouts)

    def fetch(self, records: Sequence[TokenizedRecord]) -> None:
        """Query the endpoint for records in neither cache.

        Raises:
            BackendError: If the endpoint cannot be reached, or returns too little.
            Cancelled: If cancellation was requested; received outputs are kept.
        """
        new = [record for record in records if record not in self._records]
        self.teacher.capture_step(
            self._rollouts.lacking(new), self._rollouts, self.job.check_cancelled
        )

    def target(self, records: Sequence[TokenizedRecord], device: torch.device | None) -> Targets:
        """Return the targets of cached records, one row for each position, in order."""
        targets = [
            (self._records if record in self._records else self._rollouts).target([record], device)
            for record in records
        ]
        return concatenate_targets(targets)


Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AlignedRollout:
    """A text in both tokenizations, with the teacher's scores of its tokens.

    Args:
        record: Aligned text.
        teacher_logprobs: Teacher's log-probabilities at ``record.teacher_positions``, (M,); None if
            the teacher runs in every step.
        cut: Number of tokens at the rollout's end that are not valid text.
    """

    record: AlignedRecord
    teacher_logprobs: Numbers | None = None
    cut: int = 0


@dataclass
class CrossTokenizerCollator:
    """A ``RolloutCollator`` for two tokenizers; items of records are ``AlignedRollout`` as well.

    Args:
        readers: Tokenizer views of teacher and student.
        loss: Cross-tokenizer loss.
        is_live: Whether the teacher runs in every step; else items contain its scores.
    """

    readers: tuple[TokenizerView, TokenizerView]
    loss: CrossTokenizerLoss
    is_live: bool

    def convert(
        self, rollout: Rollout, prompt: OnPolicyPrompt, credit: Numbers | None
    ) -> AlignedRollout | None:
        """Align a rollout in both tokenizations; None if no chunk can be compared."""
        aligned = self._align(rollout, prompt)
        if aligned is None or self.is_live:
            return aligned
        if rollout.teacher is None:
            raise ValueError("a usable rollout has no scores of the teacher")
        return replace(aligned, teacher_logprobs=rollout.teacher)

    def teacher_view(self, rollout: Rollout, prompt: OnPolicyPrompt) -> TokenizedRecord | None:
        """Return the teacher's tokens of a rollout."""
        aligned = self._align(rollout, prompt)
        return None if aligned is None else aligned.record.teacher_view

    def student_view(self, item: AlignedRollout) -> TokenizedRecord:
        """Return the student's tokens and loss positions."""
        return item.record.student_view

    def fetch(self, items: Sequence[AlignedRollout]) -> None:
        """Do nothing: each text was scored when it was generated."""

    def batch(self, items: Sequence[AlignedRollout], device: torch.device) -> AlignedBatch:
        """Return a micro-batch."""
        logprobs = [item.teacher_logprobs for item in items if item.teacher_logprobs is not None]
        return make_aligned_batch(
            [item.record for item in items],
            rows=get_row_pairing(self.loss),
            teacher_logprobs=None if self.is_live else logprobs,
            device=device,
        )

    def metrics(self, found: Sequence[AlignedRollout | None]) -> Mapping[str, float]:
        """Return the coverage of a step's rollouts, and counts of what is not compared."""
        if not found:
            return {}
        read = [item for item in found if item is not None]
        compared = [item.record.chunk_of >= 0 for item in read]
        inside = np.concatenate(compared) if compared else np.zeros(1)
        return {
            "rollouts_passed_over": float(len(found) - len(read)),
            "rollout_tokens_cut": float(sum(item.cut for item in read)),
            "rollout_coverage": float(inside.mean()),
        }

    def _align(self, rollout: Rollout, prompt: OnPolicyPrompt) -> AlignedRollout | None:
        teacher, student = self.readers
        student_tokens, text = self._place(rollout, prompt)
        if student_tokens is None:
            return None
        cut = len(prompt.ids) + len(rollout.ids) - len(student_tokens)
        messages = (*prompt.messages, Message("assistant", text))
        record = Record(messages, {"tools": prompt.record.tools})
        teacher_text, _, teacher_tokens = render_record(teacher, record)
        contents = [message.content for message in record.messages]
        regions, _ = find_shared_spans(
            teacher_text, student_tokens.text.tobytes().decode(), contents
        )
        marks = np.arange(len(student_tokens)) >= max(len(prompt.ids), 1)
        aligned = make_aligned_record(
            prompt.record_id,
            teacher_tokens,
            student_tokens,
            align(teacher_tokens, student_tokens, regions),
            marks,
            (teacher, student),
            Counter(),
            is_own=True,
        )
        return AlignedRollout(aligned, None, cut) if len(aligned.kinds) else None

    def _place(self, rollout: Rollout, prompt: OnPolicyPrompt) -> tuple[TokenSpans | None, str]:
        """Return the student's tokens with their bytes, and the text after the prompt.

        For plain text without a separate prompt, the text is all of it.
        """
        student = self.readers[1]
        tokens = student.tokens
        opening = np.asarray(prompt.ids, np.int64)
        prefix = tokens.join(opening).tobytes()
        if prompt.messages:
            tools = prompt.record.tools
            prefix = render_chat(student.tokenizer, prompt.messages, tools=tools).encode()
        joined, count = prefix + tokens.join(rollout.ids).tobytes(), len(rollout.ids)
        valid = _count_valid_bytes(joined)
        if valid < len(joined):
            ends = tokens.lengths[rollout.ids].cumsum()
            count = int(np.searchsorted(ends, valid - len(prefix), side="right"))
            joined = prefix + tokens.join(rollout.ids[:count]).tobytes()
        ids = np.concatenate([opening, rollout.ids[:count]])
        try:
            text = joined.decode()
        except UnicodeDecodeError:  # the prompt ends within a character
            return None, ""
        student_tokens = match_tokens(tokens, ids, text)
        text_ids = rollout.ids[:count] if prompt.messages else ids
        text_bytes = tokens.join(text_ids[tokens.kinds[text_ids] == TEXT]).tobytes()
        if not prompt.messages and tokens.prepends != "no" and text_bytes.startswith(b" "):
            text_bytes = text_bytes[1:]
        return student_tokens, text_bytes.decode(errors="ignore")


def _count_valid_bytes(raw: bytes) -> int:
    """Return the length of the longest prefix that is valid UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(raw)


RolloutCollator = SameTokenizerCollator | CrossTokenizerCollator
"""Converter of rollouts to training items, and of items to micro-batches."""
