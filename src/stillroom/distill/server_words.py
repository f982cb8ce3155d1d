"""What a teacher behind a server says of texts that are written while a student learns.

The likeliest tokens at every position are asked for once a text, before the step that learns from
it, and kept: the records' words in the cache that several jobs may share, those of rollouts in one
of the job's own. A job that was killed asks only for what neither holds, and goes on to the same
bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from stillroom.distill.cache import TeacherCache
from stillroom.distill.encode import Lesson
from stillroom.distill.endpoint_teacher import EndpointTeacher
from stillroom.distill.mixing import join_targets
from stillroom.distill.targets import Target
from stillroom.jobs import Job

__all__ = ["ServerWords"]


class ServerWords:
    """Targets of records and rollouts alike; ``hear`` before ``target``."""

    def __init__(
        self, teacher: EndpointTeacher, job: Job, records: TeacherCache, rollouts: TeacherCache
    ) -> None:
        """Stand over two caches; callers use ``open``."""
        self.teacher, self.job = teacher, job
        self._records, self._rollouts = records, rollouts

    @classmethod
    @contextmanager
    def open(
        cls, teacher: EndpointTeacher, job: Job, records: TeacherCache
    ) -> Iterator[ServerWords]:
        """Open the job's own cache beside the records', and tell at the end what was asked.

        Args:
            teacher: Whose words they are.
            job: For its scratch folder.
            records: What the teacher said of the records; read only.

        Raises:
            DataError: If the server no longer says what it said when the job began.
        """
        folder = job.scratch / "rollouts-told"
        with TeacherCache.open(folder, records.header) as own:
            teacher.check_unchanged(own)
            with teacher.billed(job), own.writing():
                yield cls(teacher, job, records, own)

    def hear(self, lessons: Sequence[Lesson]) -> None:
        """Ask the server for what is in neither cache.

        Raises:
            BackendError: If the server cannot be reached, or tells too little.
            Cancelled: If the user asked for it; what was told before is kept.
        """
        new = [lesson for lesson in lessons if lesson not in self._records]
        self.teacher.tell(self._rollouts.lacking(new), self._rollouts, self.job.check_cancelled)

    def target(self, lessons: Sequence[Lesson], device: torch.device | None) -> Target:
        """Return the targets of lessons that were heard, one row for each position, in order."""
        heard = [
            (self._records if lesson in self._records else self._rollouts).target([lesson], device)
            for lesson in lessons
        ]
        return join_targets(heard)
