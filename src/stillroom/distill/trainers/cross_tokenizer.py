"""Training from a teacher whose tokenizer differs from the student's.

Both sides read the records with their own tokenizer and chat template, and the alignment is
reported before training. The student is initialized from its own checkpoint, because it cannot be
derived from the teacher.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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
from stillroom.distill.evaluation.metrics import RecordMetrics, summarize_models
from stillroom.distill.evaluation.teacher_distance import UNDEFINED_METRICS, AlignedReference
from stillroom.distill.evaluator import FidelityEvaluator, TrainedStudent
from stillroom.distill.interfaces import ChunkLoss, CrossTokenizerLoss
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.losses.lm_head import LMHead
from stillroom.distill.on_policy.collators import AlignedRollout, CrossTokenizerCollator
from stillroom.distill.output import (
    describe_objective,
    make_student_card,
    name_method,
    warn_about_teachers,
)
from stillroom.distill.teachers.endpoint import EndpointTeacher
from stillroom.distill.teachers.ensemble import AnyTeacher, open_teacher, require_local
from stillroom.distill.teachers.local import ModelScorer, TeacherScorer
from stillroom.distill.trainers.on_policy import OnPolicyTeacher, open_rollouts
from stillroom.distill.trainers.student import (
    DistillationContext,
    evaluate_start,
    finish_student,
    load_student,
    train_student,
)
from stillroom.errors import DataError
from stillroom.jobs import Job, atomic_write
from stillroom.models import resolve_checkpoint
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.models.tokenization.token_bytes import read_token_bytes
from stillroom.objects import resolve_local
from stillroom.records import Record
from stillroom.train.data import BatchSource, RecordSplit, split_records
from stillroom.train.distributed import ProcessGroup
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.distill.jobs.cross_tokenizer import CrossTokenizerRecipe
    from stillroom.jobs.preflight import PreflightReport
    from stillroom.provenance import Artifact

__all__ = ["train_across_tokenizers"]

_CLOSING = (
    "The teacher has another tokenizer: `alignment.json` says how much of the text both share, "
    "`fidelity.html` how near the student is on held-out records by what can be compared."
)

TeacherLogprobs = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class _AlignedData:
    """Records in the tokens of both sides, and the content of alignment.json.

    ``views`` are those of teacher and student.
    """

    prepared: PreparedData
    views: tuple[TokenizerView, TokenizerView]
    training: list[AlignedRecord]
    held_out: list[AlignedRecord]
    alignment: dict[str, Any]


def train_across_tokenizers(
    recipe: CrossTokenizerRecipe, job: Job, preflight: PreflightReport
) -> Artifact:
    """Train a student whose tokenizer differs from the teacher's.

    Raises:
        BackendError: If an endpoint cannot be reached or returns too little.
        DataError: If too little of the records aligns, or a loss is not finite.
        CheckpointError: If teacher or student is missing.
        Cancelled: If cancellation was requested; ``--resume`` continues.
    """
    criterion, ranks = recipe.cross_tokenizer_loss, ProcessGroup(alone=True)
    with limit_threads(recipe.train.threads), open_teacher(recipe.teacher, job) as teacher:
        warn_about_teachers([teacher], job)
        split = split_records(resolve_local(recipe.records))
        start = Checkpoint.open(resolve_checkpoint(recipe.student, say=job.say)).folder
        tokenizer = load_tokenizer(start)
        data = _align_records(recipe, split, teacher.tokenizer, tokenizer, job)
        context = load_student(
            recipe,
            job,
            ranks,
            start,
            data.prepared,
            split,
            lambda student, tokenizer: LMHead.of(student).rows,
        )
        objective = describe_objective(criterion)
        card = make_student_card(recipe, [teacher], data.prepared, objective, recipe.rollout_policy)
        logprobs = _capture_logprobs(recipe, data, teacher, context)

        def report(metrics: Mapping[str, Sequence[RecordMetrics[Any]]]) -> dict[str, Any]:
            return _report(metrics, job, recipe.seed)

        evaluator = FidelityEvaluator(
            recipe,
            job,
            split,
            tokenizer,
            [teacher],
            criterion.method_name(),
            references=[AlignedReference(teacher.name, data.held_out, logprobs)],
            report=report,
        )
        evaluate_start(evaluator, context, preflight)
        trained = _train(recipe, context.with_lora(), teacher, data, logprobs, card)
        del context
        return finish_student(
            evaluator,
            trained,
            data.prepared,
            method=name_method(criterion),
            details={
                "layers_kept": [],
                "teacher": teacher.fingerprint,
                "cross_tokenizer_loss": criterion.model_dump(mode="json"),
                "alignment": data.alignment,
                **({"cache": None} if recipe.rollout_policy is not None else {}),
            },
            fidelity_key="cross_tokenizer_fidelity",
        )


def _align_records(
    recipe: CrossTokenizerRecipe,
    split: RecordSplit,
    teacher_tokenizer: Any,
    student_tokenizer: Any,
    job: Job,
) -> _AlignedData:
    """Tokenize the records for both sides, and reject them if too little of the text aligns.

    Writes ``output/alignment.json``.
    """
    tasks, counts = generate_records(recipe, split, job)
    limits = (recipe.context.max_tokens if recipe.context else recipe.max_tokens, recipe.max_tokens)
    teacher, student = (
        TokenizerView(tokenizer, read_token_bytes(tokenizer), limit)
        for tokenizer, limit in zip((teacher_tokenizer, student_tokenizer), limits, strict=True)
    )

    def read_in_context(record: Record) -> Record | None:
        return record if recipe.context is None else add_context(recipe.context, record)

    report = AlignmentReport(teacher.tokens, student.tokens)
    with job.phase("align", len(tasks.records), "records") as progress:
        training, encoded = encode_aligned(
            teacher,
            student,
            tasks.records,
            include_prompt=recipe.include_prompt,
            on_aligned=report.add,
            add_context=read_in_context,
        )
        progress.advance(len(tasks.records))
    measured = split.held_out[: recipe.fidelity.records]
    held_out, _ = encode_aligned(
        teacher, student, measured, include_prompt=False, add_context=read_in_context
    )
    criterion = recipe.cross_tokenizer_loss
    compared = _count_mapped_tokens(criterion, training)
    positions = sum(len(record.positions) for record in training)
    share = compared / max(positions, 1)
    alignment = {
        "compared": {"tokens": compared, "of": positions, "share": share},
        "min_coverage": criterion.min_coverage,
        "counts": encoded,
        **report.to_json(),
    }
    with atomic_write(job.output / "alignment.json") as file:
        file.write(json.dumps(alignment, indent=1, ensure_ascii=False) + "\n")
    job.say(
        f"{report}\ncompared with the teacher: {compared} of {positions} student tokens that have "
        f"a loss ({share:.1%})"
    )
    _check_coverage(criterion, compared, positions)
    tokenized = [record.student_view for record in training]
    counts = {**encoded, "passed_over": split.passed_over, **counts}
    prepared = PreparedData(tasks.records, tokenized, counts)
    return _AlignedData(prepared, (teacher, student), training, held_out, alignment)


def _uses_logprobs(recipe: CrossTokenizerRecipe) -> bool:
    """Return whether the teacher's label log-probabilities suffice for training."""
    return isinstance(recipe.cross_tokenizer_loss, ChunkLoss)


def _capture_logprobs(
    recipe: CrossTokenizerRecipe,
    data: _AlignedData,
    teacher: AnyTeacher,
    context: DistillationContext,
) -> TeacherLogprobs:
    """Return the teacher's label log-probabilities of training and held-out records.

    A loss on rows runs the teacher in every step, and captures only held-out records.
    """
    job = context.job
    folder = Path(recipe.cache) if recipe.cache else job.scratch / "cache"
    training: Sequence[AlignedRecord] = ()
    if _uses_logprobs(recipe):
        is_fixed = recipe.rollout_policy is None
        training = select_reached(recipe, data.training, job) if is_fixed else data.training
    views = [record.teacher_view for record in (*training, *data.held_out)]
    header = teacher.own_header(context.precision)
    with LogitCache.open(folder, header, on_damage=job.warn_of_damage) as cache:
        teacher.capture_own(views, cache, job)
        cache.verify()
        return {record.key: np.array(cache.read(record)["logprob"]) for record in views}


def _train(
    recipe: CrossTokenizerRecipe,
    context: DistillationContext,
    teacher: AnyTeacher,
    data: _AlignedData,
    logprobs: TeacherLogprobs,
    card: dict[str, Any],
) -> TrainedStudent:
    """Train with stored log-probabilities, or with the teacher in every step for a loss on rows."""
    is_stored = _uses_logprobs(recipe)
    loss = AlignedBatchLoss(
        recipe.cross_tokenizer_loss,
        tokens=map_tokens(*(view.tokens for view in data.views)),
        precision=context.precision,
        teacher=None if is_stored else require_local(teacher).in_precision(context.precision),
    )
    with ExitStack() as stack:
        source: BatchSource[Any]
        if recipe.rollout_policy is not None:
            source = stack.enter_context(
                _open_rollouts(recipe, context, teacher, data, logprobs, loss)
            )
        else:
            if is_stored:
                teacher.unload()
            source = _make_source(recipe, context, data, logprobs)
        return train_student(context, source, loss, card, _CLOSING)


def _make_source(
    recipe: CrossTokenizerRecipe,
    context: DistillationContext,
    data: _AlignedData,
    logprobs: TeacherLogprobs,
) -> BatchSource[Any]:
    rows, is_stored = get_row_pairing(recipe.cross_tokenizer_loss), _uses_logprobs(recipe)
    device = context.device

    def load(records: Sequence[AlignedRecord]) -> AlignedBatch:
        stored = [logprobs[record.key] for record in records] if is_stored else None
        return make_aligned_batch(records, rows=rows, teacher_logprobs=stored, device=device)

    names = _name_records(data)
    return make_record_source(recipe, context.tokenized, data.training, load, names)


def _name_records(data: _AlignedData) -> list[str]:
    return [f"{record.key} {record.record_id}" for record in data.training]


@contextmanager
def _open_rollouts(
    recipe: CrossTokenizerRecipe,
    context: DistillationContext,
    teacher: AnyTeacher,
    data: _AlignedData,
    logprobs: TeacherLogprobs,
    loss: AlignedBatchLoss,
) -> Iterator[BatchSource[Any]]:
    """Yield the source of on-policy training; the teacher scores each text once.

    A loss on rows runs the teacher in every step instead.
    """
    if recipe.rollout_policy is None:
        raise ValueError("the recipe has no rollout policy")
    is_live = not _uses_logprobs(recipe)
    collator = CrossTokenizerCollator(data.views, recipe.cross_tokenizer_loss, is_live=is_live)

    def make_item(record: AlignedRecord, scores: TeacherLogprobs) -> AlignedRollout:
        return AlignedRollout(record, None if is_live else scores[record.key])

    def read_records(records: Sequence[Record]) -> Sequence[AlignedRollout]:
        aligned, _ = encode_aligned(*data.views, records, include_prompt=False)
        if is_live:
            return [make_item(record, {}) for record in aligned]
        scores = scorer.score_tokens([record.teacher_view for record in aligned])
        by_key = dict(zip((record.key for record in aligned), scores, strict=True))
        return [make_item(record, by_key) for record in aligned]

    with ExitStack() as stack:
        scorer: TeacherScorer
        if isinstance(teacher, EndpointTeacher):
            scorer = teacher
            stack.enter_context(teacher.log_usage(context.job))
        else:
            model = teacher.in_precision(context.precision)
            scorer = ModelScorer(model, precision=context.precision)
        access = OnPolicyTeacher(
            teacher.fingerprint, loss, collator, read_records, None if is_live else scorer
        )
        items = [make_item(record, logprobs) for record in data.training]
        names = _name_records(data)
        yield stack.enter_context(
            open_rollouts(context, recipe.rollout_policy, items, names, access)
        )


def _report(
    metrics: Mapping[str, Sequence[RecordMetrics[Any]]], job: Job, seed: int
) -> dict[str, Any]:
    """Return the content of fidelity.json: distances by what can be compared."""
    fidelities = {name: figures[0] for name, figures in metrics.items() if figures}
    models = summarize_models(fidelities, seed)
    if "summary" in models:
        job.say(f"not defined across tokenizers: {'; '.join(UNDEFINED_METRICS)}")
    return {"kind": "cross_tokenizer", "not_defined": list(UNDEFINED_METRICS), **models}


def _count_mapped_tokens(criterion: CrossTokenizerLoss, records: Sequence[AlignedRecord]) -> int:
    """Return the number of the student's tokens that are compared with the teacher."""
    rows = get_row_pairing(criterion)
    if rows is None:
        return sum(int((record.chunk_of >= 0).sum()) for record in records)
    return sum(len(rows(record)[0]) for record in records)


def _check_coverage(criterion: CrossTokenizerLoss, compared: int, positions: int) -> None:
    if compared and compared >= criterion.min_coverage * positions:
        return
    raise DataError(
        f"only {compared} of {positions} student tokens can be compared with the teacher",
        code="distill.coverage",
        where="cross_tokenizer_loss.min_coverage",
        expected=f"at least {criterion.min_coverage:.0%}: see output/alignment.json for what "
        "is not compared and why",
        next="use cross_tokenizer_loss chunk_likelihood, which compares the most, raise "
        "max_tokens, or lower cross_tokenizer_loss.min_coverage",
    )
