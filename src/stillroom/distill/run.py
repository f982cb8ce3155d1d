"""Distillation job: preflight, data, student, teacher, training, evaluation.

The same sequence for every kind of teacher; differences are in the trainers.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.preparation import PreparedData, list_generator_parents
from stillroom.distill.evaluator import FidelityEvaluator, TrainedStudent
from stillroom.distill.output import (
    ADAPTER,
    choose_candidate_steps,
    finish_card,
    list_parents,
    make_candidate_writer,
    make_student_card,
    make_student_origin,
    warn_about_teachers,
    write_adapter,
    write_student,
)
from stillroom.distill.preflight.checks import run_preflight
from stillroom.distill.preflight.resources import estimate
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.teachers.ensemble import open_teachers
from stillroom.distill.trainers.cross_tokenizer import CrossTokenizerTrainer
from stillroom.distill.trainers.local import LocalTeacherTrainer
from stillroom.distill.trainers.offline import OfflineLogitsTrainer, TextOnlyTrainer
from stillroom.distill.trainers.trainer import (
    DistillationContext,
    DistillationTrainer,
    check_rollouts_present,
)
from stillroom.jobs import Job
from stillroom.jobs.machine import require_single_process
from stillroom.jobs.preflight import PreflightFinding, PreflightReport
from stillroom.models import load_causal_lm
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact
from stillroom.train.data import split_records
from stillroom.train.distributed import ProcessGroup
from stillroom.train.loop import train
from stillroom.train.lora import add_lora
from stillroom.train.precision import limit_threads

__all__ = ["estimate", "run"]


def run(recipe: DistillRecipe, job: Job) -> Artifact:
    """Distill a teacher into a student.

    Raises:
        ResourceError: If memory or disk is insufficient.
        DataError: If records, cache or a loss cannot be used.
        RecipeError: If teacher or method does not support the recipe.
        CheckpointError: If teacher or student is missing, or they share no vocabulary.
        Cancelled: If cancellation was requested; ``--resume`` continues.
    """
    report = _run_preflight(recipe, job)
    check_rollouts_present(recipe)
    kind = _make_trainer(recipe)
    with (
        ProcessGroup() as ranks,
        limit_threads(recipe.train.threads),
        open_teachers(recipe.teacher, job) as teachers,
    ):
        trainer = kind(recipe, job, teachers)
        warn_about_teachers(trainer.teachers, job)
        split = split_records(resolve_local(recipe.records))
        prepared = ranks.on_main(lambda: trainer.prepare(split))
        start, student_details = ranks.on_main(lambda: trainer.start(prepared))
        student, tokenizer = load_causal_lm(start, dtype="float32")
        rows = ranks.on_main(partial(trainer.check_compatibility, student, tokenizer))
        card = make_student_card(recipe, trainer.teachers, prepared)
        context = DistillationContext(
            recipe,
            job,
            trainer.teachers[0],
            student,
            tokenizer,
            prepared.records,
            prepared.tokenized,
            rows,
            start=Checkpoint.open(start).fingerprint,
            held_out=split.held_out,
            ranks=ranks,
        )
        with trainer.collect_targets(context) as references:
            evaluator = FidelityEvaluator(trainer, split, references)
            _report_findings(report, ranks.on_main(partial(evaluator.evaluate_start, student)), job)
            trained = _train_student(trainer, context, start, card)
            details = {
                **student_details,
                "records": prepared.counts,
                **trainer.metadata(),
                **trained.details,
            }
            del student, context
            return ranks.on_main(lambda: _finish(evaluator, trained, prepared, details))


def _make_trainer(recipe: DistillRecipe) -> type[DistillationTrainer]:
    """Return the trainer class of a recipe; only local teachers support several processes.

    Raises:
        RecipeError: If several processes were started for an unsupported recipe.
    """
    if recipe.crossing is not None:
        require_single_process("a distillation across tokenizers")
        return CrossTokenizerTrainer
    if isinstance(recipe.teacher, str):
        return LocalTeacherTrainer
    if recipe.teacher_only_writes:
        require_single_process("a distillation from a server that writes")
        return TextOnlyTrainer
    require_single_process("a distillation from a server or from several teachers")
    return OfflineLogitsTrainer


def _train_student(
    trainer: DistillationTrainer, context: DistillationContext, start: Path, card: dict[str, Any]
) -> TrainedStudent:
    """Train the student, write it, and return the result."""
    recipe, job, ranks = context.recipe, context.job, context.ranks
    steps = choose_candidate_steps(
        recipe.train.count_steps(len(context.tokenized)), recipe.candidates
    )
    on_step = make_candidate_writer(
        job.output, start, steps, recipe.out, card, writes=ranks.is_main
    )
    lora = recipe.train.lora
    if lora is not None:
        context = replace(context, student=add_lora(context.student, lora, recipe.seed))
    with trainer.build_training(context) as training:
        summary = train(
            context.student,
            training.source,
            training.objective,
            recipe.train,
            job,
            seed=recipe.seed,
            on_step=on_step,
            auxiliary=training.auxiliary,
            ranks=ranks,
        )
        details = {"train": asdict(summary), **training.details}
    measured = bool(recipe.fidelity.records and context.held_out)
    full_card = finish_card(card, trainer.closing, measured=measured, candidates=len(steps))
    details["fingerprint"] = write_student(
        context.student,
        job.output,
        start,
        recipe.out,
        full_card,
        in_place=True,
        writes=ranks.is_main,
    )
    if lora is not None and lora.keep_adapter:
        base, folder = str(recipe.student), job.output / ADAPTER
        write_adapter(context.student, folder, base, recipe.out, writes=ranks.is_main)
        details["adapter"] = {"folder": ADAPTER, "base": context.start}
    return TrainedStudent(start, context.tokenized, context.rows, summary, card, details)


def _finish(
    evaluator: FidelityEvaluator,
    trained: TrainedStudent,
    prepared: PreparedData,
    details: dict[str, Any],
) -> Artifact:
    """Evaluate the written student, and publish the artifact."""
    trainer = evaluator.trainer
    recipe, job, teachers = trainer.recipe, trainer.job, trainer.teachers
    fidelity = evaluator.evaluate_student(trained)
    return job.finish(
        "checkpoint",
        parents=[*list_parents(recipe, job, teachers), *list_generator_parents(recipe)],
        origin=make_student_origin(trainer.method, teachers, prepared.records).to_json(),
        details={
            **details,
            "parameters": Checkpoint.open(job.output).parameters,
            trainer.fidelity_key: fidelity,
        },
    )


def _run_preflight(recipe: DistillRecipe, job: Job) -> PreflightReport:
    """Run the preflight, log notes and warnings, and raise its errors."""
    report = run_preflight(recipe, job.out)
    report.write(job.work)
    for line in report.lines(least="note"):
        job.say(line)
    report.raise_errors()
    return report


def _report_findings(report: PreflightReport, finding: PreflightFinding | None, job: Job) -> None:
    """Add a finding made after initialization to the preflight report."""
    if finding is None:
        return
    report.findings.append(finding)
    report.write(job.work)
    for line in PreflightReport([finding]).lines(least="note"):
        job.say(line)


preflight = run_preflight
