"""Running the teacher once over every lesson, and keeping what it says.

One lesson at a time: a batch of several would round differently, and what is kept must not depend
on which lessons were captured before. Draws have one random number a position, which follows from
the seed, the record's tokens and the position alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stillroom.distill.cache import TeacherCache, tokens_key
from stillroom.distill.cache_header import CacheHeader, row_dtype
from stillroom.distill.condense import TILE_ROWS, draw_distinct, top_and_tail
from stillroom.distill.encode import Lesson, make_batch
from stillroom.distill.head import CHUNK_ROWS, Head, body_of
from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.provenance import digest_json
from stillroom.train.precision import body_precision, product_dtype

__all__ = ["Scorer", "capture_teacher", "teacher_hidden"]


def teacher_hidden(teacher: nn.Module, input_ids: Tensor, flat: Tensor) -> Tensor:
    """Return the teacher's hidden states at chosen positions, (N, H); no gradient flows.

    Args:
        teacher: In evaluation mode.
        input_ids: (B, T).
        flat: Indices into (B * T).
    """
    with torch.no_grad():
        hidden = body_of(teacher)(input_ids=input_ids, use_cache=False).last_hidden_state
        picked: Tensor = hidden.reshape(-1, hidden.shape[-1])[flat]  # (N, H)
    return picked


def capture_teacher(
    teacher: nn.Module, lessons: Sequence[Lesson], cache: TeacherCache, job: Job
) -> int:
    """Run the teacher over every lesson that the cache lacks.

    Args:
        teacher: In evaluation mode.
        lessons: What to capture.
        cache: Where to.
        job: For progress and cancellation.

    Returns:
        How many lessons were captured now.

    Raises:
        DataError: If the teacher gives a number that is not finite; record and position are named.
        ResourceError: If another process is adding to the cache, or the disk is full.
        Cancelled: If the user asked for it; what was captured is kept.
    """
    if not cache.lacking(lessons):
        return 0
    scorer = Scorer(teacher, cache.header)
    with cache.writing():
        missing = cache.lacking(lessons)
        tokens = sum(len(lesson.ids) for lesson in missing)
        with job.phase("teacher", tokens, "tokens") as progress:
            for lesson in missing:
                job.check_cancelled()
                cache.add(lesson, scorer.rows(lesson))
                progress.advance(len(lesson.ids))
    return len(missing)


@dataclass(slots=True)
class Scorer:
    """A teacher that says its words in the form of a cache."""

    teacher: nn.Module
    header: CacheHeader
    _head: Head = field(init=False, repr=False)
    _operand: Tensor = field(init=False, repr=False)
    _space: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Cut the teacher's head to the vocabulary."""
        self._head = Head.of(self.teacher, self.header.vocabulary)
        self._operand = self._head.operand(product_dtype(self.header.precision)).detach()
        full = torch.promote_types(self._operand.dtype, torch.float32)
        self._space = self._operand.new_empty(CHUNK_ROWS, self._head.rows, dtype=full)

    def rows(self, lesson: Lesson) -> npt.NDArray[np.void]:
        """Return what the cache keeps of one lesson, (N,) of the header's ``row_dtype``.

        Raises:
            DataError: If the teacher gives a number that is not finite.
        """
        rows = np.zeros(len(lesson.positions), dtype=row_dtype(self.header))
        offsets = self._offsets(lesson)
        for start, logits in self.chunks(lesson):
            tile = TILE_ROWS if logits.device.type == "cpu" else len(logits)
            for at in range(0, len(logits), tile):
                part = slice(start + at, start + at + tile)
                with torch.no_grad():
                    found = self._condense(logits[at : at + tile], offsets[part])
                for name, values in found.items():
                    rows[name][part] = values.cpu().numpy()
        return rows

    def chunks(self, lesson: Lesson) -> Iterator[tuple[int, Tensor]]:
        """Return the teacher's logits at the lesson's positions, a chunk of rows at a time.

        Each comes with its first row: (n, V), divided by the header's temperature, in space that
        the next one overwrites.

        Raises:
            DataError: If the teacher gives a number that is not finite.
        """
        header, device = self.header, self._operand.device
        batch = make_batch([lesson], None, device)
        with body_precision(header.precision, device):
            hidden = teacher_hidden(self.teacher, batch.input_ids, batch.flat)
        for start in range(0, len(hidden), CHUNK_ROWS):
            part = hidden[start : start + CHUNK_ROWS]
            with torch.no_grad():
                raw = self._head.project(part, self._operand, self._space[: len(part)])
                logits = self._head.shape_logits(raw)
                if header.temperature != 1:
                    logits = logits.div_(header.temperature)
            _refuse_odd(logits.sum(-1), lesson, start)  # inf and nan survive a sum
            yield start, logits

    def _condense(self, logits: Tensor, offsets: Tensor) -> Mapping[str, Tensor]:
        if self.header.mode == "dense":
            return {"logprobs": torch.log_softmax(logits, -1)}
        if self.header.mode == "top_k":
            return top_and_tail(logits, self.header.width)
        drawn = draw_distinct(
            logits,
            self.header.width,
            offsets.to(logits.device),
            sampling_temperature=self.header.sampling_temperature,
        )
        return {"ids": drawn.ids, "logprobs": drawn.logprobs, "scale": drawn.scale}

    def _offsets(self, lesson: Lesson) -> Tensor:
        seed = int(digest_json(["draw", self.header.seed, tokens_key(lesson.ids)])[:15], 16)
        drawn = torch.rand(len(lesson.ids), generator=torch.Generator().manual_seed(seed))
        return drawn[torch.from_numpy(lesson.positions)]


def _refuse_odd(sums: Tensor, lesson: Lesson, start: int) -> None:
    fine = sums.isfinite()
    if not bool(fine.all()):
        position = int(lesson.positions[start + int((~fine).nonzero()[0])])
        where = f"record {lesson.record_id}, position {position}"
        raise DataError(
            f"the teacher's logits at {where} are not finite",
            code="distill.teacher-not-finite",
            where=where,
            expected="finite numbers",
            next="set train.precision to float32, or check the teacher's weights",
        )
