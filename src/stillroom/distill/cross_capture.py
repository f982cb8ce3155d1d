"""Asking a teacher once for its own tokens' log-probabilities, and keeping those alone.

That is all a crossing of chunks needs: four bytes a position in the teacher cache, in the mode
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
        ResourceError: If another process is adding to the cache, or the disk is full.
        Cancelled: If the user asked for it; what was captured is kept.
    """
    if not cache.lacking(lessons):
        return 0
    with cache.writing():
        missing = cache.lacking(lessons)
        tokens = sum(len(lesson.ids) for lesson in missing)
        with job.phase("teacher", tokens, "tokens") as progress:
            for lesson in missing:
                job.check_cancelled()
                (found,) = scorer.score_tokens([lesson])
                cache.add(lesson, own_rows(lesson, found, cache.dtype))
                progress.advance(len(lesson.ids))
    return len(missing)


def own_rows(
    lesson: Lesson, logprobs: npt.NDArray[np.float32], dtype: np.dtype[np.void]
) -> npt.NDArray[np.void]:
    """Return a lesson's log-probabilities, (N,), as rows of a cache of mode ``own``."""
    rows = np.zeros(len(lesson.positions), dtype=dtype)
    rows["logprob"] = logprobs
    return rows
