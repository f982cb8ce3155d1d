"""Running the teacher once over every lesson, and keeping what it says.

One lesson at a time: a batch of several would round differently, and what is kept must not depend
on which lessons were captured before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stillroom.distill.cache import CacheHeader, TeacherCache
from stillroom.distill.encode import Lesson, make_batch
from stillroom.distill.head import CHUNK_ROWS, Head, body_of
from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.provenance import digest_json
from stillroom.train.precision import body_precision, product_dtype

__all__ = ["capture_teacher", "teacher_hidden"]


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
        DataError: If the teacher gives a number that is not finite.
        Cancelled: If the user asked for it; what was captured is kept.
    """
    head = Head.of(teacher, cache.header.vocabulary)
    operand = head.operand(product_dtype(cache.header.precision))
    missing = [lesson for lesson in lessons if lesson not in cache]
    tokens, begun = sum(len(lesson.ids) for lesson in missing), 0
    with job.phase("teacher", tokens, "tokens") as progress, torch.inference_mode():
        for lesson in missing:
            job.check_cancelled()
            if lesson not in cache:  # two records may hold the same tokens
                cache.add(lesson, _capture_one(teacher, head, operand, lesson, cache))
                begun += 1
            progress.advance(len(lesson.ids))
    return begun


def _capture_one(
    teacher: nn.Module, head: Head, operand: Tensor, lesson: Lesson, cache: TeacherCache
) -> npt.NDArray[np.void]:
    header, device = cache.header, operand.device
    batch = make_batch([lesson], None, device)
    with body_precision(header.precision, device):
        hidden = teacher_hidden(teacher, batch.input_ids, batch.flat)
    rows = np.zeros(len(lesson.positions), dtype=cache.dtype)
    rows["token"] = lesson.labels
    seed = int(digest_json(["capture", header.seed, lesson.key])[:15], 16)
    generator = torch.Generator(device).manual_seed(seed)
    for start in range(0, len(rows), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        logits = head.shape_logits(head.project(hidden[part], operand))
        if not bool(torch.isfinite(logits).all()):
            raise _not_finite(lesson, start)
        logprobs = torch.log_softmax(logits / header.temperature, -1)  # (n, V)
        found = (
            _draw(logprobs, header, generator)
            if header.mode == "sampled"
            else _top(logprobs, header)
        )
        for name, values in found.items():
            rows[name][part] = values.cpu().numpy()
    return rows


def _top(logprobs: Tensor, header: CacheHeader) -> dict[str, Tensor]:
    top = logprobs.topk(header.width, -1)  # (n, k)
    others = logprobs.exp().scatter_(-1, top.indices, 0.0)
    tail = others.sum(-1).log()  # summed from its own terms: 1 - sum(top) would lose a small one
    return {"ids": top.indices, "logprobs": top.values, "tail": tail}


def _draw(logprobs: Tensor, header: CacheHeader, generator: torch.Generator) -> dict[str, Tensor]:
    drawn = (
        torch.multinomial(logprobs.exp(), header.width, replacement=True, generator=generator)
        .sort(-1)
        .values
    )  # (n, m)
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    slot = first.cumsum(-1) - 1  # the place of each draw among the distinct ones
    counts = torch.zeros_like(drawn).scatter_add_(-1, slot, torch.ones_like(drawn))
    ids = torch.zeros_like(drawn).scatter_(-1, slot, drawn)
    return {"ids": ids, "counts": counts, "logprobs": logprobs.gather(-1, ids)}


def _not_finite(lesson: Lesson, start: int) -> DataError:
    return DataError(
        f"the teacher's logits for record {lesson.record_id} are not finite",
        code="distill.teacher-not-finite",
        where=f"record {lesson.record_id}, positions from {int(lesson.positions[start])}",
        expected="finite numbers",
        next="set train.precision to float32, or check the teacher's weights",
    )
