"""Training from a teacher whose tokenizer differs from the student's.

Both sides read the records with their own tokenizer and chat template, the alignment is reported
before anything is trained, and the student starts from a checkpoint of its own, since nothing of
the teacher's fits it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from stillroom.checkpoints import Checkpoint
from stillroom.distill.cross_tokenizer.data import (
    AlignedBatch,
    AlignedRecord,
    TokenizerView,
    encode_aligned,
    get_row_pairing,
    make_aligned_batch,
)
from stillroom.distill.cross_tokenizer.loss import AlignedBatchLoss
from stillroom.distill.cross_tokenizer.report import AlignmentReport
from stillroom.distill.cross_tokenizer.spans import map_tokens
from stillroom.distill.data.preparation import (
    PreparedData,
    add_context,
    generate_records,
    make_record_source,
    select_reached,
)
from stillroom.distill.evaluation.metrics import RecordMetrics
from stillroom.distill.evaluation.teacher_distance import (
    UNDEFINED_METRICS,
    AlignedReference,
    TeacherReference,
)
from stillroom.distill.interfaces import ChunkLoss, CrossTokenizerLoss
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.losses.lm_head import LMHead
from stillroom.distill.on_policy.collators import AlignedRollout, CrossTokenizerCollator
from stillroom.distill.teachers.endpoint import EndpointTeacher
from stillroom.distill.teachers.ensemble import require_local
from stillroom.distill.teachers.local import ModelScorer, TeacherScorer
from stillroom.distill.trainers.on_policy import OnPolicyTeacher, open_rollout_training
from stillroom.distill.trainers.trainer import (
    DistillationContext,
    DistillationTrainer,
    TrainingSetup,
)
from stillroom.errors import DataError
from stillroom.jobs import atomic_write
from stillroom.models import resolve_checkpoint
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.models.tokenization.token_bytes import read_token_bytes
from stillroom.records import Record
from stillroom.train.data import RecordSplit

__all__ = ["CrossTokenizerTrainer"]

TeacherLogprobs = Mapping[str, npt.NDArray[np.float32]]


@dataclass
class CrossTokenizerTrainer(DistillationTrainer):
    """One teacher, here or behind a server, of another vocabulary."""

    _lessons: list[AlignedRecord] = field(default_factory=list, init=False)
    _held: list[AlignedRecord] = field(default_factory=list, init=False)
    _alignment: dict[str, Any] = field(default_factory=dict, init=False)
    _heard: TeacherLogprobs = field(default_factory=dict, init=False)

    closing: ClassVar[str] = (
        "The teacher has another tokenizer: `alignment.json` says how much of the text both share, "
        "`fidelity.html` how near the student is on held-out records by what can be compared."
    )
    fidelity_key: ClassVar[str] = "crossing_fidelity"

    @cached_property
    def crossing(self) -> CrossTokenizerLoss:
        """The loss."""
        if self.recipe.crossing is None:
            raise ValueError("the recipe has no crossing")
        return self.recipe.crossing

    @property
    def listens(self) -> bool:
        """Whether the teacher's own log-probabilities suffice to train."""
        return isinstance(self.crossing, ChunkLoss)

    @property
    @override
    def loss(self) -> str:
        return self.crossing.method_name()

    @property
    @override
    def method(self) -> str:
        return f"distill.cross_tokenizer_losses.{self.loss}"

    @cached_property
    def _start(self) -> Path:
        path = resolve_checkpoint(str(self.recipe.student), say=self.job.say)
        return Checkpoint.open(path).folder

    @cached_property
    def _student_tokenizer(self) -> Any:
        return load_tokenizer(self._start)

    @property
    @override
    def tokenizer(self) -> Any:
        return self._student_tokenizer

    @cached_property
    def _readers(self) -> tuple[TokenizerView, TokenizerView]:
        """The teacher's and the student's."""
        context, limit = self.recipe.context, self.recipe.max_tokens
        limits = (context.max_tokens if context is not None else limit, limit)
        tokenizers = (self.first.tokenizer, self.tokenizer)
        teacher, student = (
            TokenizerView(tokenizer, read_token_bytes(tokenizer), most)
            for tokenizer, most in zip(tokenizers, limits, strict=True)
        )
        return teacher, student

    @override
    def prepare(self, split: RecordSplit) -> PreparedData:
        """Encode the records for both sides, and refuse them where too little of the text aligns.

        Leaves ``output/alignment.json``.
        """
        tasks, counts = generate_records(self.recipe, split, self.job)
        records = tasks.learned
        teacher, student = self._readers
        report = AlignmentReport(teacher.tokens, student.tokens)
        with self.job.phase("align", len(records), "records") as progress:
            self._lessons, encoded = encode_aligned(
                *self._readers,
                records,
                include_prompt=self.recipe.include_prompt,
                on_aligned=report.add,
                add_context=self._tell,
            )
            progress.advance(len(records))
        chosen = split.held_out[: self.recipe.fidelity.records]
        self._held, _ = encode_aligned(
            *self._readers, chosen, include_prompt=False, add_context=self._tell
        )
        compared = _count_mapped_tokens(self.crossing, self._lessons)
        positions = sum(len(lesson.positions) for lesson in self._lessons)
        share = compared / max(positions, 1)
        self._alignment = {
            "compared": {"tokens": compared, "of": positions, "share": share},
            "least_coverage": self.crossing.least_coverage,
            "counts": encoded,
            **report.to_json(),
        }
        with atomic_write(self.job.output / "alignment.json") as file:
            file.write(json.dumps(self._alignment, indent=1, ensure_ascii=False) + "\n")
        self.job.say(
            f"{report}\ncompared with the teacher: {compared} of {positions} student tokens that "
            f"bear loss ({share:.1%})"
        )
        _check_coverage(self.crossing, compared, positions)
        learned = [lesson.learned for lesson in self._lessons]
        return PreparedData(
            records, learned, {**encoded, "passed_over": split.passed_over, **counts}
        )

    def _tell(self, record: Record) -> Record | None:
        """Return the record as the teacher reads it; None where it cannot."""
        context = self.recipe.context
        return record if context is None else add_context(context, record)

    @override
    def admit(self, student: Any, tokenizer: Any) -> int:
        return LMHead.of(student).rows

    @contextmanager
    @override
    def hear(self, room: DistillationContext) -> Iterator[list[TeacherReference]]:
        """Run the teacher once over what is needed of its own tokens.

        A crossing of rows needs the teacher in every step; of its own tokens only what is measured.
        """
        recipe, teacher = self.recipe, self.first
        folder = Path(recipe.targets.cache) if recipe.targets.cache else self.job.scratch / "cache"
        learned = select_reached(recipe, self._lessons) if self.listens else []
        lessons = [*learned, *self._held]
        taught = [lesson.taught for lesson in lessons]
        with LogitCache.open(folder, teacher.own_header(room.precision)) as cache:
            teacher.capture_own(taught, cache, self.job)
            cache.verify()
            self._heard = {one.key: np.array(cache.read(one)["logprob"]) for one in taught}
        yield [AlignedReference(teacher.name, self._held, self._heard)]

    @override
    def course(self, room: DistillationContext) -> AbstractContextManager[TrainingSetup]:
        teacher = None if self.listens else require_local(self.first).lowered(room.precision)
        objective = AlignedBatchLoss(
            self.crossing,
            tokens=map_tokens(*(reader.tokens for reader in self._readers)),
            precision=room.precision,
            teacher=teacher,
        )
        names = [f"{lesson.key} {lesson.record_id}" for lesson in self._lessons]
        if self.recipe.rollouts is not None:
            return self._write(room, objective, names)
        if self.listens:
            self.first.unload()
        load = partial(self._load, device=room.device)
        source = make_record_source(self.recipe, room.lessons, self._lessons, load, names)
        return nullcontext(TrainingSetup(source, objective))

    @contextmanager
    def _write(
        self, room: DistillationContext, objective: AlignedBatchLoss, names: Sequence[str]
    ) -> Iterator[TrainingSetup]:
        """Prepare a course on text that the student writes: the teacher hears each text once.

        A crossing of rows needs the teacher in every step instead.
        """
        readers, is_live = self._readers, not self.listens
        reading = CrossTokenizerCollator(readers, self.crossing, is_live=is_live)

        def item(lesson: AlignedRecord, heard: TeacherLogprobs) -> AlignedRollout:
            return AlignedRollout(lesson, None if is_live else heard[lesson.key])

        def read_records(records: Sequence[Record]) -> Sequence[AlignedRollout]:
            lessons, _ = encode_aligned(*readers, records, include_prompt=False)
            if is_live:
                return [item(lesson, {}) for lesson in lessons]
            told = scorer.score_tokens([lesson.taught for lesson in lessons])
            heard = dict(zip((lesson.key for lesson in lessons), told, strict=True))
            return [item(lesson, heard) for lesson in lessons]

        with ExitStack() as stack:
            scorer: TeacherScorer
            if isinstance(self.first, EndpointTeacher):
                scorer = self.first
                stack.enter_context(self.first.billed(self.job))
            else:
                model = require_local(self.first).lowered(room.precision)
                scorer = ModelScorer(model, precision=room.precision)
            voice = OnPolicyTeacher(objective, reading, read_records, None if is_live else scorer)
            items = [item(lesson, self._heard) for lesson in self._lessons]
            yield stack.enter_context(open_rollout_training(room, items, names, voice))

    def _load(self, chosen: Sequence[AlignedRecord], *, device: torch.device) -> AlignedBatch:
        known = [self._heard[lesson.key] for lesson in chosen] if self.listens else None
        rows = get_row_pairing(self.crossing)
        return make_aligned_batch(chosen, rows=rows, teacher_logprobs=known, device=device)

    @override
    def describe(self) -> Mapping[str, Any]:
        return {
            "teacher": self.first.fingerprint,
            "crossing": self.crossing.model_dump(mode="json"),
            "alignment": self._alignment,
        }

    @override
    def report(self, found: Mapping[str, Sequence[RecordMetrics[Any]]]) -> Mapping[str, Any]:
        sides = {name: figures[0] for name, figures in found.items() if figures}
        whole: dict[str, Any] = {"kind": "crossing", "not_defined": list(UNDEFINED_METRICS)}
        whole |= {name: one.to_json() for name, one in sides.items()}
        if any(one.rows for one in sides.values()):
            whole["summary"] = {
                name: one.summarize(self.recipe.seed) for name, one in sides.items()
            }
            self.job.say(f"not defined across tokenizers: {'; '.join(UNDEFINED_METRICS)}")
        return whole


def _count_mapped_tokens(crossing: CrossTokenizerLoss, lessons: Sequence[AlignedRecord]) -> int:
    """Return how many of the student's tokens the crossing compares with the teacher."""
    rows = get_row_pairing(crossing)
    if rows is None:
        return sum(int((lesson.chunk_of >= 0).sum()) for lesson in lessons)
    return sum(len(rows(lesson)[0]) for lesson in lessons)


def _check_coverage(crossing: CrossTokenizerLoss, compared: int, positions: int) -> None:
    if compared and compared >= crossing.least_coverage * positions:
        return
    raise DataError(
        f"only {compared} of {positions} student tokens can be compared with the teacher",
        code="distill.coverage",
        where="crossing.least_coverage",
        expected=f"at least {crossing.least_coverage:.0%}: see output/alignment.json for what "
        "falls out and why",
        next="use crossing chunk_likelihood, which compares the most, raise max_tokens, or lower "
        "crossing.least_coverage",
    )
