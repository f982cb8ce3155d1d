"""Training from servers or several teachers whose log-probabilities or text are stored.

Each teacher is asked for the records it teaches and the held-out ones, into a cache of its own;
then the student learns from the caches, so that no two teachers are in memory together.

The student learns what was written, in its own tokens, by cross-entropy. Nothing says how likely
the teacher finds a text, so that nearness to it is not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.preparation import (
    PreparedData,
    attach_teacher_context,
    make_record_source,
    select_reached,
)
from stillroom.distill.data.tokenized import Batch, TokenizedRecord, make_batch, tokenize_records
from stillroom.distill.evaluation.metrics import RecordMetrics
from stillroom.distill.evaluation.teacher_distance import (
    TOP_K_NOTE,
    TeacherReference,
    TopKReference,
)
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.losses.lm_head import LMHead
from stillroom.distill.losses.targets import concatenate_targets
from stillroom.distill.settings import EndpointTeacherSettings
from stillroom.distill.teachers.endpoint import EndpointTeacher, TextOnlyTeacher
from stillroom.distill.teachers.ensemble import (
    WeightedTeacher,
    assign_records,
    count_rows_shared_by_all,
)
from stillroom.distill.teachers.local import LocalTeacher
from stillroom.distill.trainers.loss import DistillationLoss, MultiTeacherBatch, MultiTeacherLoss
from stillroom.distill.trainers.on_policy import open_on_policy_training
from stillroom.distill.trainers.trainer import (
    DistillationContext,
    DistillationTrainer,
    TrainingSetup,
    make_text_training,
)
from stillroom.errors import DataError
from stillroom.models import resolve_checkpoint
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.records import Record
from stillroom.train.data import RecordSplit

__all__ = [
    "OfflineLogitsTrainer",
    "TextOnlyTrainer",
]


@dataclass
class OfflineLogitsTrainer(DistillationTrainer):
    """Teachers whose words are kept before the student learns."""

    _seats: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False)
    _held: list[TokenizedRecord] = field(default_factory=list, init=False)
    _caches: list[LogitCache] = field(default_factory=list, init=False)
    _headers: list[dict[str, Any]] = field(default_factory=list, init=False)

    closing: ClassVar[str] = (
        "`fidelity.html` says how near it is to each teacher on held-out records."
    )

    @property
    def mixes(self) -> bool:
        """Whether more than one teacher speaks of a record."""
        return len(self.chairs) > 1 and self.chairs[0].source is None

    @override
    def prepare(self, split: RecordSplit) -> PreparedData:
        """Return what is learned from, with every lesson's teachers and their weight."""
        prepared, chairs = super().prepare(split), self.chairs
        held = split.held_out[: self.recipe.fidelity.records]
        seats = assign_records(chairs, [*prepared.records, *held], self.recipe.source_field)
        self._seats, lessons, counts = seats, prepared.lessons, prepared.counts
        if len(chairs) > 1:
            taught = [len(self._of_seat(at, lessons)) for at in range(len(chairs))]
            told = [f"{one.teacher.name} {n}" for one, n in zip(chairs, taught, strict=True)]
            self.job.say(f"records that each teaches: {', '.join(told)}")
            counts = {**counts, "taught": taught}
        if not self.mixes:
            lessons = [
                replace(one, weight=one.weight * chairs[seats[one.record_id][0]].weight)
                for one in lessons
            ]
        self._held = self._encode_held_out(held)
        return replace(prepared, lessons=lessons, counts=counts)

    def _encode_held_out(self, records: Sequence[Record]) -> list[TokenizedRecord]:
        """Return the held-out records as lessons, in context where the teacher reads it."""
        tokenizer, recipe = self.tokenizer, self.recipe
        lessons, _ = tokenize_records(
            tokenizer, records, max_tokens=recipe.max_tokens, include_prompt=False
        )
        if recipe.context is None or not lessons:
            return lessons
        try:
            return attach_teacher_context(recipe.context, tokenizer, records, lessons)[0]
        except DataError:  # none of the few that are measured; those learned from are enough
            self.job.say("no held-out record can be read with its context: none is measured")
            return []

    @override
    def admit(self, student: Any, tokenizer: Any) -> int:
        return count_rows_shared_by_all(self.chairs, student, tokenizer)

    @contextmanager
    @override
    def hear(self, room: DistillationContext) -> Iterator[list[TeacherReference]]:
        if not self._tells():
            self.job.say(
                f"{self.first.name} tells log-probabilities of a text's own tokens alone: "
                "how near the student is to it is not measured"
            )
            yield []
            return
        with ExitStack() as stack:
            yardsticks: list[TeacherReference] = []
            for at, (chair, headers) in enumerate(zip(self.chairs, self._make(room), strict=True)):
                cache, held = (stack.enter_context(LogitCache.open(*one)) for one in headers)
                lessons = self._of_seat(at, self._held)
                for each, wanted in ((cache, self._learned(at, room)), (held, lessons)):
                    heard = [lesson.by_teacher for lesson in wanted]
                    chair.teacher.capture(heard, each, self.job)
                    each.verify()
                self._caches.append(cache)
                self._headers.append(cache.header.model_dump())
                yardsticks.append(TopKReference(chair.teacher.name, lessons, held))
                chair.teacher.unload()
            yield yardsticks

    def _tells(self) -> bool:
        """Whether distributions are told; a method of draws alone can do without."""
        first = self.first
        is_mute = isinstance(first, EndpointTeacher) and not first.probe.granted
        return self.recipe.method.asks_teacher or not is_mute

    def _make(self, room: DistillationContext) -> list[tuple[tuple[Path, Any], tuple[Path, Any]]]:
        """Return where each teacher's words of records and of held-out ones are kept, and as what.

        What is measured is always the likeliest tokens at temperature 1.
        """
        recipe = self.recipe
        targets = recipe.targets
        base = Path(targets.cache) if targets.cache else self.job.scratch / "cache"
        likeliest = {"mode": "top_k", "k": min(targets.k, room.rows), "cache": None}
        measured = recipe.model_copy(
            update={
                "targets": targets.model_copy(update=likeliest),
                "method": recipe.method.model_copy(update={"temperature": 1.0}),
            }
        )
        headers = [
            [chair.teacher.header(one, room.rows, room.precision) for chair in self.chairs]
            for one in (recipe, measured)
        ]
        # By source, rows of several caches stand in one batch, and so must have one width.
        for row in headers:
            width = min(header.width for header in row)
            row[:] = [header.model_copy(update={"width": width}) for header in row]
        made = []
        for at, chair in enumerate(self.chairs):
            place = base if len(self.chairs) == 1 else base / chair.teacher.fingerprint[:16]
            held = self.job.scratch / f"held-out-{at}"
            made.append(((place, headers[0][at]), (held, headers[1][at])))
        return made

    def _learned(self, seat: int, room: DistillationContext) -> list[TokenizedRecord]:
        """Return the lessons whose distributions are learned: with rollouts there may be none."""
        policy = self.recipe.rollouts
        is_spared = policy is not None and not policy.learns_from_records
        if is_spared or not self.recipe.method.asks_teacher:
            return []
        return self._of_seat(seat, select_reached(self.recipe, room.lessons))

    @override
    def course(self, room: DistillationContext) -> AbstractContextManager[TrainingSetup]:
        if self.recipe.rollouts is not None:
            return open_on_policy_training(room, self._caches[0] if self._caches else None)
        method = self.recipe.method
        if not method.asks_teacher:
            return nullcontext(make_text_training(room))
        objective: Any = DistillationLoss(method, rows=room.rows, precision=room.precision)
        if self.mixes:
            weights = [chair.weight for chair in self.chairs]
            objective = MultiTeacherLoss(method, weights, rows=room.rows, precision=room.precision)
        lessons, seats = room.lessons, self._seats
        names = [f"{lesson.name} {seats[lesson.record_id]}" for lesson in lessons]
        load = partial(self._load, device=room.device)
        return nullcontext(
            TrainingSetup(make_record_source(self.recipe, lessons, lessons, load, names), objective)
        )

    def _load(self, chosen: Sequence[TokenizedRecord], *, device: Any) -> Batch | MultiTeacherBatch:
        heard = [lesson.by_teacher for lesson in chosen]
        if self.mixes:
            targets = tuple(cache.target(heard, device) for cache in self._caches)
            return MultiTeacherBatch(make_batch(chosen, targets[0], device), targets)
        parts = [
            self._caches[self._seats[lesson.record_id][0]].target([lesson], device)
            for lesson in heard
        ]
        return make_batch(chosen, concatenate_targets(parts), device)

    def _of_seat(self, seat: int, lessons: Sequence[TokenizedRecord]) -> list[TokenizedRecord]:
        """Return the lessons that one teacher teaches."""
        return [lesson for lesson in lessons if seat in self._seats[lesson.record_id]]

    @override
    def describe(self) -> Mapping[str, Any]:
        return {
            "teachers": [_describe_teacher(chair) for chair in self.chairs],
            **({"caches": self._headers} if self._headers else {}),
        }

    @override
    def report(self, found: Mapping[str, Sequence[RecordMetrics[Any]]]) -> Mapping[str, Any]:
        each = []
        for at in range(len(next(iter(found.values()), ()))):
            sides = {name: figures[at] for name, figures in found.items()}
            part: dict[str, Any] = {"teacher": self.teachers[at].name}
            part |= {name: one.to_json() for name, one in sides.items()}
            if any(one.rows for one in sides.values()):
                part["summary"] = {
                    name: one.summarize(self.recipe.seed) for name, one in sides.items()
                }
            each.append(part)
        first = {name: value for name, value in (each[0] if each else {}).items()}
        first.pop("teacher", None)
        return {"kind": "told", "note": TOP_K_NOTE, **first, "teachers": each}


def _describe_teacher(chair: WeightedTeacher) -> dict[str, Any]:
    teacher = chair.teacher
    found: dict[str, Any] = {
        "name": teacher.name,
        "fingerprint": teacher.fingerprint,
        "license": teacher.license,
        "weight": chair.weight,
        "source": chair.source,
        "about": teacher.about,
    }
    if isinstance(teacher, LocalTeacher):
        found["parameters"] = teacher.checkpoint.parameters
    return found


class TextOnlyTrainer(DistillationTrainer):
    """A server that is asked for text alone."""

    closing: ClassVar[str] = (
        "It learned text that its teacher wrote: `written.jsonl`. `fidelity.html` says how well it "
        "does on held-out records."
    )

    @cached_property
    def _writer(self) -> TextOnlyTeacher:
        if not isinstance(self.recipe.teacher, EndpointTeacherSettings):
            raise TypeError("a teacher that only writes stands behind a server")
        return TextOnlyTeacher(self.recipe.teacher)

    @property
    @override
    def teachers(self) -> Sequence[TextOnlyTeacher]:
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
        return LMHead.of(student).rows

    @override
    def course(self, room: DistillationContext) -> AbstractContextManager[TrainingSetup]:
        return nullcontext(make_text_training(room))

    @override
    def describe(self) -> Mapping[str, Any]:
        return {"teacher": self._writer.fingerprint, "writer": self._writer.about}

    @override
    def report(self, found: Mapping[str, Sequence[RecordMetrics[Any]]]) -> Mapping[str, Any]:
        return {"kind": "written"}
