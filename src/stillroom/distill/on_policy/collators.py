"""Collators that turn rollouts into micro-batches, for one vocabulary or two.

``RolloutSource`` decides what each step learns from, and knows no form of it; a reading makes the
form. This file has the one for teacher and student of one vocabulary.

The likeliest tokens at every position are asked for once a text, before the step that learns from
it, and kept: the records' words in the cache that several jobs may share, those of rollouts in one
of the job's own. A job that was killed asks only for what neither holds, and goes on to the same
bytes.

Source: Patiño et al. 2025 (GOLD, general on-policy logit distillation) for the idea: the student
writes, the teacher reads the same text in its own tokens, and a crossing compares the two. Differs
from it: the student's side is the very tokens that it drew, never its text tokenized again, so that
what is learned is what it does; and both sides meet at exact bytes (``alignment``).

A rollout's bytes need not be text: it may stop within a character. Such a rollout bears loss up to
there; one that is left with nothing to compare is passed over, and both are logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

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


class RolloutCollator(Protocol):
    """Makes lessons of rollouts, and micro-batches of these and of records' lessons alike."""

    def read(
        self, rollout: Rollout, prompt: OnPolicyPrompt, credit: npt.NDArray[np.float32] | None
    ) -> Any | None:
        """Return a rollout as what is learned from; None where it cannot be read."""

    def for_teacher(self, rollout: Rollout, prompt: OnPolicyPrompt) -> TokenizedRecord | None:
        """Return it in the teacher's tokens, with the positions that it is asked for."""

    def learned(self, item: Any) -> TokenizedRecord:
        """Return the student's tokens and the positions that bear loss."""

    def hear(self, items: Sequence[Any]) -> None:
        """Have the teacher say what a step's micro-batches need, where it is not run in them."""

    def batch(self, items: Sequence[Any], device: torch.device) -> Any:
        """Return a micro-batch."""

    def describe(self, found: Sequence[Any | None]) -> Mapping[str, float]:
        """Return what is logged of a step's rollouts as they were read."""


class SameTokenizerCollator:
    """Rollouts in the vocabulary that teacher and student share."""

    def __init__(self, words: EndpointTargets | None = None) -> None:
        """Set up.

        Args:
            words: Tells the teacher's distributions, where it does not run in every step and the
                method asks for them.
        """
        self._words = words

    def read(
        self, rollout: Rollout, prompt: OnPolicyPrompt, credit: npt.NDArray[np.float32] | None
    ) -> TokenizedRecord:
        """Return it as a lesson of its own tokens."""
        return rollout.lesson(prompt, credit)

    def for_teacher(self, rollout: Rollout, prompt: OnPolicyPrompt) -> TokenizedRecord:
        """Return the same: the teacher reads these tokens."""
        return rollout.lesson(prompt)

    def learned(self, item: TokenizedRecord) -> TokenizedRecord:
        """Return the lesson."""
        return item

    def hear(self, items: Sequence[TokenizedRecord]) -> None:
        """Ask the server about what is new."""
        if self._words is not None:
            self._words.hear(items)

    def batch(self, items: Sequence[TokenizedRecord], device: torch.device) -> Batch:
        """Return a micro-batch, with the server's words where there is one."""
        target = self._words.target(items, device) if self._words is not None else None
        return make_rollout_batch(items, device, target)

    def describe(self, found: Sequence[TokenizedRecord | None]) -> Mapping[str, float]:
        """Return nothing: every rollout can be read."""
        return {}


def make_rollout_batch(
    lessons: Sequence[TokenizedRecord],
    device: torch.device | None = None,
    target: Targets | None = None,
) -> Batch:
    """Return a micro-batch of rollouts and records; it marks what the student wrote itself.

    Args:
        lessons: Of both kinds.
        device: Of the student.
        target: What the teacher says at their positions; None where it is run, or not asked.
    """
    plain = make_batch(lessons, target, device)

    def join(name: str, kind: Any) -> Tensor:
        parts = []
        for lesson in lessons:
            values = getattr(lesson, name) if isinstance(lesson, TokenizedRollout) else None
            parts.append(np.zeros(len(lesson.positions), kind) if values is None else values)
        return torch.from_numpy(np.concatenate(parts)).to(device)

    drawn = SamplingInfo(
        *(join(name, np.float32) for name in ("old", "importance", "gains", "credit"))
    )
    return replace(plain, rollout=join("own", np.bool_), drawn=drawn)


class EndpointTargets:
    """Targets of records and rollouts alike; ``hear`` before ``target``."""

    def __init__(
        self, teacher: EndpointTeacher, job: Job, records: LogitCache, rollouts: LogitCache
    ) -> None:
        """Stand over two caches; callers use ``open``."""
        self.teacher, self.job = teacher, job
        self._records, self._rollouts = records, rollouts

    @classmethod
    @contextmanager
    def open(
        cls, teacher: EndpointTeacher, job: Job, records: LogitCache
    ) -> Iterator[EndpointTargets]:
        """Open the job's own cache beside the records', and tell at the end what was asked.

        Args:
            teacher: Whose words they are.
            job: For its scratch folder.
            records: What the teacher said of the records; read only.

        Raises:
            DataError: If the server no longer says what it said when the job began.
        """
        folder = job.scratch / "rollouts-told"
        with LogitCache.open(folder, records.header) as own:
            teacher.check_unchanged(own)
            with teacher.billed(job), own.writing():
                yield cls(teacher, job, records, own)

    def hear(self, lessons: Sequence[TokenizedRecord]) -> None:
        """Ask the server for what is in neither cache.

        Raises:
            BackendError: If the server cannot be reached, or tells too little.
            Cancelled: If the user asked for it; what was told before is kept.
        """
        new = [lesson for lesson in lessons if lesson not in self._records]
        self.teacher.tell(self._rollouts.lacking(new), self._rollouts, self.job.check_cancelled)

    def target(self, lessons: Sequence[TokenizedRecord], device: torch.device | None) -> Targets:
        """Return the targets of lessons that were heard, one row for each position, in order."""
        heard = [
            (self._records if lesson in self._records else self._rollouts).target([lesson], device)
            for lesson in lessons
        ]
        return concatenate_targets(heard)


Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AlignedRollout:
    """A text as both sides read it, with what the teacher said of its own tokens.

    Args:
        lesson: The text.
        heard: The teacher's log-probabilities at ``lesson.teacher_positions``, (M,); None where the
            teacher runs in every step.
        cut: Tokens at the rollout's end that are no text.
    """

    lesson: AlignedRecord
    heard: Numbers | None = None
    cut: int = 0


@dataclass
class CrossTokenizerCollator:
    """A ``RolloutReading`` for two tokenizers; records' items are ``AlignedRollout`` as well.

    Args:
        readers: The teacher's and the student's.
        crossing: The loss.
        is_live: Whether the teacher runs in every step; else items bring what it said.
    """

    readers: tuple[TokenizerView, TokenizerView]
    crossing: CrossTokenizerLoss
    is_live: bool

    def read(
        self, rollout: Rollout, prompt: OnPolicyPrompt, credit: Numbers | None
    ) -> AlignedRollout | None:
        """Return it as both sides read it; None where no chunk of it can be compared."""
        made = self._align(rollout, prompt)
        if made is None or self.is_live:
            return made
        if rollout.teacher is None:
            raise ValueError("a rollout that can be read was not heard by the teacher")
        return replace(made, heard=rollout.teacher)

    def for_teacher(self, rollout: Rollout, prompt: OnPolicyPrompt) -> TokenizedRecord | None:
        """Return the teacher's tokens of it."""
        made = self._align(rollout, prompt)
        return None if made is None else made.lesson.taught

    def learned(self, item: AlignedRollout) -> TokenizedRecord:
        """Return the student's tokens, and the positions that bear loss."""
        return item.lesson.learned

    def hear(self, items: Sequence[AlignedRollout]) -> None:
        """Do nothing: each text was heard when it was written."""

    def batch(self, items: Sequence[AlignedRollout], device: torch.device) -> AlignedBatch:
        """Return a micro-batch."""
        known = [item.heard for item in items if item.heard is not None]
        return make_aligned_batch(
            [item.lesson for item in items],
            rows=get_row_pairing(self.crossing),
            teacher_logprobs=None if self.is_live else known,
            device=device,
        )

    def describe(self, found: Sequence[AlignedRollout | None]) -> Mapping[str, float]:
        """Return how much of a step's rollouts is compared, and what of them is not."""
        if not found:
            return {}
        read = [one for one in found if one is not None]
        compared = [one.lesson.chunk_of >= 0 for one in read]
        inside = np.concatenate(compared) if compared else np.zeros(1)
        return {
            "rollouts_passed_over": float(len(found) - len(read)),
            "rollout_tokens_cut": float(sum(one.cut for one in read)),
            "rollout_coverage": float(inside.mean()),
        }

    def _align(self, rollout: Rollout, prompt: OnPolicyPrompt) -> AlignedRollout | None:
        teacher, student = self.readers
        placed, said = self._place(rollout, prompt)
        if placed is None:
            return None
        cut = len(prompt.ids) + len(rollout.ids) - len(placed)
        record = Record((*prompt.messages, Message("assistant", said)))
        teacher_text, _, taught = render_record(teacher, record)
        contents = [message.content for message in record.messages]
        regions, _ = find_shared_spans(teacher_text, placed.text.tobytes().decode(), contents)
        marks = np.arange(len(placed)) >= max(len(prompt.ids), 1)
        lesson = make_aligned_record(
            prompt.record_id,
            taught,
            placed,
            align(taught, placed, regions),
            marks,
            (teacher, student),
            Counter(),
            is_own=True,
        )
        return AlignedRollout(lesson, None, cut) if len(lesson.kinds) else None

    def _place(self, rollout: Rollout, prompt: OnPolicyPrompt) -> tuple[TokenSpans | None, str]:
        """Return the student's tokens with their bytes, and what they say after the prompt.

        A plain text has no prompt apart: what is said is all of it.
        """
        student = self.readers[1]
        tokens = student.tokens
        opening = np.asarray(prompt.ids, np.int64)
        before = tokens.join(opening).tobytes()
        if prompt.messages:
            told = render_chat(student.tokenizer, prompt.messages, add_generation_prompt=True)
            before = told.encode()
        whole, kept = before + tokens.join(rollout.ids).tobytes(), len(rollout.ids)
        valid = _count_valid_bytes(whole)
        if valid < len(whole):
            ends = tokens.lengths[rollout.ids].cumsum()
            kept = int(np.searchsorted(ends, valid - len(before), side="right"))
            whole = before + tokens.join(rollout.ids[:kept]).tobytes()
        ids = np.concatenate([opening, rollout.ids[:kept]])
        try:
            text = whole.decode()
        except UnicodeDecodeError:  # the prompt itself ends within a character
            return None, ""
        placed = match_tokens(tokens, ids, text)
        spoken = rollout.ids[:kept] if prompt.messages else ids
        said = tokens.join(spoken[tokens.kinds[spoken] == TEXT]).tobytes()
        if not prompt.messages and tokens.prepends != "no" and said.startswith(b" "):
            said = said[1:]
        return placed, said.decode(errors="ignore")


def _count_valid_bytes(raw: bytes) -> int:
    """Return how many bytes at the beginning are text."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(raw)
