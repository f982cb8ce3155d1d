"""The lane of a teacher that only writes: a server of which text is all that can be had.

The student learns what was written, in its own tokens, by cross-entropy. Nothing says how likely
the teacher finds a text, so that nearness to it is not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.checkpoints import Checkpoint
from stillroom.distill.figures import Figures
from stillroom.distill.head import Head
from stillroom.distill.lane import Lane
from stillroom.distill.teacher_settings import ServerTeacher
from stillroom.distill.teaching import Classroom, Course, text_course
from stillroom.distill.writing_teacher import WritingTeacher
from stillroom.models import resolve_checkpoint
from stillroom.models.causal import load_tokenizer

__all__ = ["WrittenLane"]


class WrittenLane(Lane):
    """A server that is asked for text alone."""

    closing: ClassVar[str] = (
        "It learned text that its teacher wrote: `written.jsonl`. `fidelity.html` says how well it "
        "does on held-out records."
    )

    @cached_property
    def _writer(self) -> WritingTeacher:
        if not isinstance(self.recipe.teacher, ServerTeacher):
            raise TypeError("a teacher that only writes stands behind a server")
        return WritingTeacher(self.recipe.teacher)

    @property
    @override
    def teachers(self) -> Sequence[WritingTeacher]:
        return [self._writer]

    @cached_property
    def _tokenizer(self) -> Any:
        path = resolve_checkpoint(str(self.recipe.student), say=self.job.say)
        return load_tokenizer(Checkpoint.open(path).folder)

    @property
    @override
    def tokenizer(self) -> Any:
        return self._tokenizer

    @override
    def admit(self, student: Any, tokenizer: Any) -> int:
        return Head.of(student).rows

    @override
    def course(self, room: Classroom) -> AbstractContextManager[Course]:
        return nullcontext(text_course(room))

    @override
    def describe(self) -> Mapping[str, Any]:
        return {"teacher": self._writer.fingerprint, "writer": self._writer.about}

    @override
    def report(self, found: Mapping[str, Sequence[Figures[Any]]]) -> Mapping[str, Any]:
        return {"kind": "written"}
