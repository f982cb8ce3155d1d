"""Training from a teacher whose tokenizer differs from the student's.

Both sides read the records with their own tokenizer and chat template, and the alignment is
reported before training. The student is initialized from its own checkpoint, because it cannot be
derived from the teacher.
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
    """Trainer for one teacher, local or behind an endpoint, with another vocabulary."""

    _lessons: list[AlignedRecord] = field(default_factory=list, init=False)
    _held_out: list[AlignedRecord] = field(default_factory=list, init=False)
    _alignment: dict[str, Any] = field(default_factory=dict, init=False)
    _logprobs: TeacherLogprobs = field(default_factory=dict, init=False)

    closing: ClassVar[str] = (
        "The teacher has another tokenizer: `alignment.json` says how much of the text both share, "
        "`fidelity.html` how near the student is on held-out records by what can be compared."
    )
    fidelity_key: ClassVar[str] = "crossing_fidelity"

    @cached_property
    def crossing(self) -> CrossTokenizerLoss:
        """Cross-tokenizer loss."""
        if self.recipe.crossing is None:
            raise ValueError("the recipe has no crossing")
        return self.recipe.crossing

    @property
    def uses_logprobs(self) -> bool:
        """Whether the teacher's label log-probabilities suffice for training."""
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
    def _views(self) -> tuple[TokenizerView, TokenizerView]:
        """Tokenizer views of teacher and student."""
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
        """Tokenize the records for both sides, and reject them if too little of the text aligns.

        Writes ``output/alignment.json``.
        """
        tasks, counts = generate_records(self.recipe, split, self.job)
        records = tasks.records
        teacher, student = self._views
        report = AlignmentReport(teacher.tokens, student.tokens)
        with self.job.phase("align", len(records), "records") as progress:
            self._lessons, encoded = encode_aligned(
                *self._views,
                records,
                include_prompt=self.recipe.include_prompt,
                on_aligned=report.add,
                add_context=self._add_context,
            )
            progress.advance(len(records))
        held_out = split.held_out[: self.recipe.fidelity.records]
        self._held_out, _ = encode_aligned(
            *self._views, held_out, include_prompt=False, add_context=self._add_context
        )
        compared = _count_mapped_tokens(self.crossing, self._lessons)
        positions = sum(len(record.positions) for record in self._lessons)
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
            f"have a loss ({share:.1%})"
        )
        _check_coverage(self.crossing, compared, positions)
        training = [record.student_view for record in self._lessons]
        return PreparedData(
            records, training, {**encoded, "passed_over": split.passed_over, **counts}
        )

    def _add_context(self, record: Record) -> Record | None:
        """Return the record as the teacher reads it; None if it cannot."""
        context = self.recipe.context
        return record if context is None else add_context(context, record)

    @override
    def check_compatibility(self, student: Any, tokenizer: Any) -> int:
        return LMHead.of(student).rows

    @contextmanager
    @override
    def collect_targets(self, context: DistillationContext) -> Iterator[list[TeacherReference]]:
        """Capture the teacher's label log-probabilities of training and held-out records.

        A loss on rows runs the teacher in every step, and captures only held-out records.
        """
        recipe, teacher = self.recipe, self.first
        folder = Path(recipe.targets.cache) if recipe.targets.cache else self.job.scratch / "cache"
        training = select_reached(recipe, self._lessons) if self.uses_logprobs else []
        records = [*training, *self._held_out]
        teacher_records = [aligned.teacher_view for aligned in records]
        with LogitCache.open(folder, teacher.own_header(context.precision)) as cache:
            teacher.capture_own(teacher_records, cache, self.job)
            cache.verify()
            self._logprobs = {
                record.key: np.array(cache.read(record)["logprob"]) for record in teacher_records
            }
        yield [AlignedReference(teacher.name, self._held_out, self._logprobs)]

    @override
    def build_training(self, context: DistillationContext) -> AbstractContextManager[TrainingSetup]:
        teacher = (
            None
            if self.uses_logprobs
            else require_local(self.first).in_precision(context.precision)
        )
        objective = AlignedBatchLoss(
            self.crossing,
            tokens=map_tokens(*(view.tokens for view in self._views)),
            precision=context.precision,
            teacher=teacher,
        )
        names = [f"{record.key} {record.record_id}" for record in self._lessons]
        if self.recipe.rollouts is not None:
            return self._open_on_policy(context, objective, names)
        if self.uses_logprobs:
            self.first.unload()
        load = partial(self._load, device=context.device)
        source = make_record_source(self.recipe, context.tokenized, self._lessons, load, names)
        return nullcontext(TrainingSetup(source, objective))

    @contextmanager
    def _open_on_policy(
        self, context: DistillationContext, objective: AlignedBatchLoss, names: Sequence[str]
    ) -> Iterator[TrainingSetup]:
        """Open on-policy training; the teacher scores each text once.

        A loss on rows runs the teacher in every step instead.
        """
        views, is_live = self._views, not self.uses_logprobs
        collator = CrossTokenizerCollator(views, self.crossing, is_live=is_live)

        def item(record: AlignedRecord, logprobs: TeacherLogprobs) -> AlignedRollout:
            return AlignedRollout(record, None if is_live else logprobs[record.key])

        def read_records(records: Sequence[Record]) -> Sequence[AlignedRollout]:
            aligned, _ = encode_aligned(*views, records, include_prompt=False)
            if is_live:
                return [item(record, {}) for record in aligned]
            scores = scorer.score_tokens([record.teacher_view for record in aligned])
            logprobs = dict(zip((record.key for record in aligned), scores, strict=True))
            return [item(record, logprobs) for record in aligned]

        with ExitStack() as stack:
            scorer: TeacherScorer
            if isinstance(self.first, EndpointTeacher):
                scorer = self.first
                stack.enter_context(self.first.log_usage(self.job))
            else:
                model = require_local(self.first).in_precision(context.precision)
                scorer = ModelScorer(model, precision=context.precision)
            teacher = OnPolicyTeacher(
                objective, collator, read_records, None if is_live else scorer
            )
            items = [item(record, self._logprobs) for record in self._lessons]
            yield stack.enter_context(open_rollout_training(context, items, names, teacher))

    def _load(self, records: Sequence[AlignedRecord], *, device: torch.device) -> AlignedBatch:
        logprobs = (
            [self._logprobs[record.key] for record in records] if self.uses_logprobs else None
        )
        rows = get_row_pairing(self.crossing)
        return make_aligned_batch(records, rows=rows, teacher_logprobs=logprobs, device=device)

    @override
    def metadata(self) -> Mapping[str, Any]:
        return {
            "teacher": self.first.fingerprint,
            "crossing": self.crossing.model_dump(mode="json"),
            "alignment": self._alignment,
        }

    @override
    def report(self, metrics: Mapping[str, Sequence[RecordMetrics[Any]]]) -> Mapping[str, Any]:
        fidelities = {name: figures[0] for name, figures in metrics.items() if figures}
        result: dict[str, Any] = {"kind": "crossing", "not_defined": list(UNDEFINED_METRICS)}
        result |= {name: fidelity.to_json() for name, fidelity in fidelities.items()}
        if any(fidelity.rows for fidelity in fidelities.values()):
            result["summary"] = {
                name: fidelity.summarize(self.recipe.seed) for name, fidelity in fidelities.items()
            }
            self.job.say(f"not defined across tokenizers: {'; '.join(UNDEFINED_METRICS)}")
        return result


def _count_mapped_tokens(criterion: CrossTokenizerLoss, records: Sequence[AlignedRecord]) -> int:
    """Return the number of the student's tokens that are compared with the teacher."""
    rows = get_row_pairing(criterion)
    if rows is None:
        return sum(int((record.chunk_of >= 0).sum()) for record in records)
    return sum(len(rows(record)[0]) for record in records)


def _check_coverage(criterion: CrossTokenizerLoss, compared: int, positions: int) -> None:
    if compared and compared >= criterion.least_coverage * positions:
        return
    raise DataError(
        f"only {compared} of {positions} student tokens can be compared with the teacher",
        code="distill.coverage",
        where="crossing.least_coverage",
        expected=f"at least {criterion.least_coverage:.0%}: see output/alignment.json for what "
        "is not compared and why",
        next="use crossing chunk_likelihood, which compares the most, raise max_tokens, or lower "
        "crossing.least_coverage",
    )
