"""Asking a teacher once for its own tokens' log-probabilities, and keeping those alone.

That is all a crossing of chunks needs: eight bytes a position in the teacher cache, in the mode
``own``. Who scores is a ``TeacherScorer``: a model in this process, or an endpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stillroom.distill.cache import TeacherCache
from stillroom.distill.encode import Lesson
from stillroom.distill.scoring import TeacherScorer
from stillroom.jobs import Job

__all__ = ["capture_own", "own_rows"]


def capture_own(
    scorer: TeacherScorer, lessons: Sequence[Lesson], cache: TeacherCache, job: Job
) -> int:
    """Keep the teacher's log-probability of every lesson's own next tokens that the cache lacks.

    Args:
        scorer: Asked for one lesson at a time, so that a kill loses one.
        lessons: As the teacher's tokenizer cuts them.
        cache: Of mode ``own``.
        job: For progress and cancellation.

    Returns:
        How many lessons were captured now.

    Raises:
        DataError: If the teacher gives a number that is not finite.
        Cancelled: If the user asked for it; what was captured is kept.
    """
    missing = [lesson for lesson in lessons if lesson not in cache]
    begun = 0
    with job.phase("teacher", sum(len(lesson.ids) for lesson in missing), "tokens") as progress:
        for lesson in missing:
            job.check_cancelled()
            if lesson not in cache:  # two records may hold the same tokens
                (found,) = scorer.score_tokens([lesson])
                cache.add(lesson, own_rows(lesson, found, cache.dtype))
                begun += 1
            progress.advance(len(lesson.ids))
    return begun


def own_rows(
    lesson: Lesson, logprobs: npt.NDArray[np.float32], dtype: np.dtype[np.void]
) -> npt.NDArray[np.void]:
    """Return a lesson's log-probabilities, (N,), as rows of a cache of mode ``own``."""
    rows = np.zeros(len(lesson.positions), dtype=dtype)
    rows["token"], rows["logprob"] = lesson.labels, logprobs
    return rows
