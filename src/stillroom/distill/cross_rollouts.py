"""Text that the student writes, heard by a teacher of another tokenizer.

Source: Patiño et al. 2025 (GOLD, general on-policy logit distillation) for the idea: the student
writes, the teacher reads the same text in its own tokens, and a crossing compares the two. Differs
from it: the student's side is the very tokens that it drew, never its text tokenized again, so that
what is learned is what it does; and both sides meet at exact bytes (``alignment``).

A rollout's bytes need not be text: it may stop within a character. Such a rollout bears loss up to
there; one that is left with nothing to compare is passed over, and both are logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from stillroom.distill.alignment import align, find_regions
from stillroom.distill.cross_lessons import (
    CrossBatch,
    CrossLesson,
    Reader,
    make_cross_batch,
    make_lesson,
    read_record,
)
from stillroom.distill.cross_loss import rows_of
from stillroom.distill.crossing import Crossing
from stillroom.distill.encode import Lesson
from stillroom.distill.rollout_text import Rollout, RolloutPrompt
from stillroom.distill.token_spans import Placed, match_tokens
from stillroom.models import render_chat
from stillroom.models.token_bytes import TEXT
from stillroom.records import Message, Record

__all__ = ["CrossReading", "CrossRollout"]

Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CrossRollout:
    """A text as both sides read it, with what the teacher said of its own tokens.

    Args:
        lesson: The text.
        heard: The teacher's log-probabilities at ``lesson.teacher_positions``, (M,); None where the
            teacher runs in every step.
        cut: Tokens at the rollout's end that are no text.
    """

    lesson: CrossLesson
    heard: Numbers | None = None
    cut: int = 0


@dataclass
class CrossReading:
    """A ``RolloutReading`` for two tokenizers; records' items are ``CrossRollout`` as well.

    Args:
        readers: The teacher's and the student's.
        crossing: The loss.
        is_live: Whether the teacher runs in every step; else items bring what it said.
    """

    readers: tuple[Reader, Reader]
    crossing: Crossing
    is_live: bool

    def read(
        self, rollout: Rollout, prompt: RolloutPrompt, credit: Numbers | None
    ) -> CrossRollout | None:
        """Return it as both sides read it; None where no chunk of it can be compared."""
        made = self._align(rollout, prompt)
        if made is None or self.is_live:
            return made
        if rollout.teacher is None:
            raise ValueError("a rollout that can be read was not heard by the teacher")
        return replace(made, heard=rollout.teacher)

    def for_teacher(self, rollout: Rollout, prompt: RolloutPrompt) -> Lesson | None:
        """Return the teacher's tokens of it."""
        made = self._align(rollout, prompt)
        return None if made is None else made.lesson.taught

    def learned(self, item: CrossRollout) -> Lesson:
        """Return the student's tokens, and the positions that bear loss."""
        return item.lesson.learned

    def hear(self, items: Sequence[CrossRollout]) -> None:
        """Do nothing: each text was heard when it was written."""

    def batch(self, items: Sequence[CrossRollout], device: torch.device) -> CrossBatch:
        """Return a micro-batch."""
        known = [item.heard for item in items if item.heard is not None]
        return make_cross_batch(
            [item.lesson for item in items],
            rows=rows_of(self.crossing),
            teacher_logprobs=None if self.is_live else known,
            device=device,
        )

    def describe(self, found: Sequence[CrossRollout | None]) -> Mapping[str, float]:
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

    def _align(self, rollout: Rollout, prompt: RolloutPrompt) -> CrossRollout | None:
        teacher, student = self.readers
        placed, said = self._place(rollout, prompt)
        if placed is None:
            return None
        cut = len(prompt.ids) + len(rollout.ids) - len(placed)
        record = Record((*prompt.messages, Message("assistant", said)))
        teacher_text, _, taught = read_record(teacher, record)
        contents = [message.content for message in record.messages]
        regions, _ = find_regions(teacher_text, placed.text.tobytes().decode(), contents)
        marks = np.arange(len(placed)) >= max(len(prompt.ids), 1)
        lesson = make_lesson(
            prompt.record_id,
            taught,
            placed,
            align(taught, placed, regions),
            marks,
            (teacher, student),
            Counter(),
            is_own=True,
        )
        return CrossRollout(lesson, None, cut) if len(lesson.kinds) else None

    def _place(self, rollout: Rollout, prompt: RolloutPrompt) -> tuple[Placed | None, str]:
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
        valid = _valid_bytes(whole)
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


def _valid_bytes(raw: bytes) -> int:
    """Return how many bytes at the beginning are text."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(raw)
