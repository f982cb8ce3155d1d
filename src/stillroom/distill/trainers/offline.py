"""Training from endpoints or several teachers with stored log-probabilities or text.

``OfflineLogitsTrainer``: each teacher is run or queried for its records and the held-out ones, into
a cache of its own; then the student is trained from the caches, so that only one teacher is in
memory at a time.

``TextOnlyTrainer``: the student is trained on generated text in its own tokens, by cross-entropy.
The distance to the teacher is not measured, because its log-probabilities are not available.
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
    """Trainer for teachers whose outputs are stored before training."""

    _assigned: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False)
    _held_out: list[TokenizedRecord] = field(default_factory=list, init=False)
    _caches: list[LogitCache] = field(default_factory=list, init=False)
    _headers: list[dict[str, Any]] = field(default_factory=list, init=False)

    closing: ClassVar[str] = (
        "`fidelity.html` says how near it is to each teacher on held-out records."
    )

    @property
    def combines_teachers(self) -> bool:
        """Whether every record has several teachers."""
        return len(self.weighted_teachers) > 1 and self.weighted_teachers[0].source is None

    @override
    def prepare(self, split: RecordSplit) -> PreparedData:
        """Return the training data, with the teachers and the weight of every record."""
        prepared, teachers = super().prepare(split), self.weighted_teachers
        held_out = split.held_out[: self.recipe.fidelity.records]
        assigned = assign_records(
            teachers, [*prepared.records, *held_out], self.recipe.source_field
        )
        self._assigned, tokenized, counts = assigned, prepared.tokenized, prepared.counts
        if len(teachers) > 1:
            records_per_teacher = [
                len(self._records_of(index, tokenized)) for index in range(len(teachers))
            ]
            counts_by_name = [
                f"{record.teacher.name} {n}"
                for record, n in zip(teachers, records_per_teacher, strict=True)
            ]
            self.job.say(f"records per teacher: {', '.join(counts_by_name)}")
            counts = {**counts, "taught": records_per_teacher}
        if not self.combines_teachers:
            tokenized = [
                replace(
                    record, weight=record.weight * teachers[assigned[record.record_id][0]].weight
                )
                for record in tokenized
            ]
        self._held_out = self._encode_held_out(held_out)
        return replace(prepared, tokenized=tokenized, counts=counts)

    def _encode_held_out(self, records: Sequence[Record]) -> list[TokenizedRecord]:
        """Tokenize the held-out records, with context if the teacher reads it."""
        tokenizer, recipe = self.tokenizer, self.recipe
        tokenized, _ = tokenize_records(
            tokenizer, records, max_tokens=recipe.max_tokens, include_prompt=False
        )
        if recipe.context is None or not tokenized:
            return tokenized
        try:
            return attach_teacher_context(recipe.context, tokenizer, records, tokenized)[0]
        except DataError:  # none of the few measured records; training records are checked before
            self.job.say("no held-out record fits with its context: none is measured")
            return []

    @override
    def check_compatibility(self, student: Any, tokenizer: Any) -> int:
        return count_rows_shared_by_all(self.weighted_teachers, student, tokenizer)

    @contextmanager
    @override
    def collect_targets(self, context: DistillationContext) -> Iterator[list[TeacherReference]]:
        if not self._has_distributions():
            self.job.say(
                f"{self.first.name} returns log-probabilities of labels only: the distance of the "
                "student to it is not measured"
            )
            yield []
            return
        with ExitStack() as stack:
            references: list[TeacherReference] = []
            for index, (weighted, headers) in enumerate(
                zip(self.weighted_teachers, self._make_locations(context), strict=True)
            ):
                cache, held_cache = (
                    stack.enter_context(LogitCache.open(*location)) for location in headers
                )
                held_out = self._records_of(index, self._held_out)
                for open_cache, records in (
                    (cache, self._training_records(index, context)),
                    (held_cache, held_out),
                ):
                    teacher_records = [lesson.teacher_view for lesson in records]
                    weighted.teacher.capture(teacher_records, open_cache, self.job)
                    open_cache.verify()
                self._caches.append(cache)
                self._headers.append(cache.header.model_dump())
                references.append(TopKReference(weighted.teacher.name, held_out, held_cache))
                weighted.teacher.unload()
            yield references

    def _has_distributions(self) -> bool:
        """Whether distributions are available, or required by the method."""
        first = self.first
        is_mute = isinstance(first, EndpointTeacher) and not first.probe.granted
        return self.recipe.method.asks_teacher or not is_mute

    def _make_locations(
        self, context: DistillationContext
    ) -> list[tuple[tuple[Path, Any], tuple[Path, Any]]]:
        """Return the folder and header of each teacher's two caches: training and held-out.

        Held-out records are measured with top-k targets at temperature 1.
        """
        recipe = self.recipe
        targets = recipe.targets
        base = Path(targets.cache) if targets.cache else self.job.scratch / "cache"
        likeliest = {"mode": "top_k", "k": min(targets.k, context.rows), "cache": None}
        measured = recipe.model_copy(
            update={
                "targets": targets.model_copy(update=likeliest),
                "method": recipe.method.model_copy(update={"temperature": 1.0}),
            }
        )
        headers = [
            [
                teacher.teacher.header(recipe_variant, context.rows, context.precision)
                for teacher in self.weighted_teachers
            ]
            for recipe_variant in (recipe, measured)
        ]
        # By source, rows of several caches are combined in a batch, and so need one width.
        for row in headers:
            width = min(header.width for header in row)
            row[:] = [header.model_copy(update={"width": width}) for header in row]
        locations = []
        for number, teacher in enumerate(self.weighted_teachers):
            folder = (
                base
                if len(self.weighted_teachers) == 1
                else base / teacher.teacher.fingerprint[:16]
            )
            held_folder = self.job.scratch / f"held-out-{number}"
            locations.append(((folder, headers[0][number]), (held_folder, headers[1][number])))
        return locations

    def _training_records(
        self, teacher_index: int, context: DistillationContext
    ) -> list[TokenizedRecord]:
        """Return the records whose distributions are distilled; may be empty with rollouts."""
        policy = self.recipe.rollouts
        is_not_needed = policy is not None and not policy.uses_records
        if is_not_needed or not self.recipe.method.asks_teacher:
            return []
        return self._records_of(teacher_index, select_reached(self.recipe, context.tokenized))

    @override
    def build_training(self, context: DistillationContext) -> AbstractContextManager[TrainingSetup]:
        if self.recipe.rollouts is not None:
            return open_on_policy_training(context, self._caches[0] if self._caches else None)
        method = self.recipe.method
        if not method.asks_teacher:
            return nullcontext(make_text_training(context))
        objective: Any = DistillationLoss(method, rows=context.rows, precision=context.precision)
        if self.combines_teachers:
            weights = [teacher.weight for teacher in self.weighted_teachers]
            objective = MultiTeacherLoss(
                method, weights, rows=context.rows, precision=context.precision
            )
        records, assigned = context.tokenized, self._assigned
        names = [f"{record.name} {assigned[record.record_id]}" for record in records]
        load = partial(self._load, device=context.device)
        return nullcontext(
            TrainingSetup(make_record_source(self.recipe, records, records, load, names), objective)
        )

    def _load(
        self, records: Sequence[TokenizedRecord], *, device: Any
    ) -> Batch | MultiTeacherBatch:
        teacher_records = [record.teacher_view for record in records]
        if self.combines_teachers:
            targets = tuple(cache.target(teacher_records, device) for cache in self._caches)
            return MultiTeacherBatch(make_batch(records, targets[0], device), targets)
        parts = [
            self._caches[self._assigned[record.record_id][0]].target([record], device)
            for record in teacher_records
        ]
        return make_batch(records, concatenate_targets(parts), device)

    def _records_of(
        self, teacher_index: int, records: Sequence[TokenizedRecord]
    ) -> list[TokenizedRecord]:
        """Return the records of one teacher."""
        return [record for record in records if teacher_index in self._assigned[record.record_id]]

    @override
    def metadata(self) -> Mapping[str, Any]:
        return {
            "teachers": [_describe_teacher(chair) for chair in self.weighted_teachers],
            **({"caches": self._headers} if self._headers else {}),
        }

    @override
    def report(self, metrics: Mapping[str, Sequence[RecordMetrics[Any]]]) -> Mapping[str, Any]:
        parts = []
        for number in range(len(next(iter(metrics.values()), ()))):
            fidelities = {name: figures[number] for name, figures in metrics.items()}
            part: dict[str, Any] = {"teacher": self.teachers[number].name}
            part |= {name: fidelity.to_json() for name, fidelity in fidelities.items()}
            if any(fidelity.rows for fidelity in fidelities.values()):
                part["summary"] = {
                    name: fidelity.summarize(self.recipe.seed)
                    for name, fidelity in fidelities.items()
                }
            parts.append(part)
        first = {name: value for name, value in (parts[0] if parts else {}).items()}
        first.pop("teacher", None)
        return {"kind": "told", "note": TOP_K_NOTE, **first, "teachers": parts}


def _describe_teacher(weighted: WeightedTeacher) -> dict[str, Any]:
    teacher = weighted.teacher
    description: dict[str, Any] = {
        "name": teacher.name,
        "fingerprint": teacher.fingerprint,
        "license": teacher.license,
        "weight": weighted.weight,
        "source": weighted.source,
        "about": teacher.about,
    }
    if isinstance(teacher, LocalTeacher):
        description["parameters"] = teacher.checkpoint.parameters
    return description


class TextOnlyTrainer(DistillationTrainer):
    """Trainer for an endpoint that only generates text."""

    closing: ClassVar[str] = (
        "It learned text that its teacher wrote: `written.jsonl`. `fidelity.html` says how well it "
        "does on held-out records."
    )

    @cached_property
    def _generator(self) -> TextOnlyTeacher:
        if not isinstance(self.recipe.teacher, EndpointTeacherSettings):
            raise TypeError("a text-only teacher is behind an endpoint")
        return TextOnlyTeacher(self.recipe.teacher)

    @property
    @override
    def teachers(self) -> Sequence[TextOnlyTeacher]:
        return [self._generator]

    @cached_property
    def _tokenizer(self) -> Any:
        path = resolve_checkpoint(str(self.recipe.student), say=self.job.say)
        return load_tokenizer(Checkpoint.open(path).folder)

    @property
    @override
    def tokenizer(self) -> Any:
        return self._tokenizer

    @override
    def check_compatibility(self, student: Any, tokenizer: Any) -> int:
        return LMHead.of(student).rows

    @override
    def build_training(self, context: DistillationContext) -> AbstractContextManager[TrainingSetup]:
        return nullcontext(make_text_training(context))

    @override
    def metadata(self) -> Mapping[str, Any]:
        return {"teacher": self._generator.fingerprint, "writer": self._generator.about}

    @override
    def report(self, metrics: Mapping[str, Sequence[RecordMetrics[Any]]]) -> Mapping[str, Any]:
        return {"kind": "written"}
