"""Distillation job: preflight, data, student, teacher, training, evaluation.

One way for every kind of teacher; what differs between them is in its lane.
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
from stillroom.distill.preflight.audits import PreflightFinding, PreflightReport
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
    """Distill a teacher into a student; the package's docstring says what that leaves.

    Raises:
        ResourceError: If memory or disk does not suffice.
        DataError: If records, cache or a loss cannot be used.
        RecipeError: If the recipe asks for what teacher or method cannot give.
        CheckpointError: If teacher or student is missing, or they share no vocabulary.
        Cancelled: If the user stopped it; ``--resume`` goes on.
    """
    flight = _run_preflight(recipe, job)
    check_rollouts_present(recipe)
    kind = _make_trainer(recipe)
    with (
        ProcessGroup() as ranks,
        limit_threads(recipe.train.threads),
        open_teachers(recipe.teacher, job) as chairs,
    ):
        lane = kind(recipe, job, chairs)
        warn_about_teachers(lane.teachers, job)
        split = split_records(resolve_local(recipe.records))
        prepared = ranks.on_main(lambda: lane.prepare(split))
        start, kept = ranks.on_main(lambda: lane.start(prepared))
        student, tokenizer = load_causal_lm(start, dtype="float32")
        rows = ranks.on_main(partial(lane.admit, student, tokenizer))
        card = make_student_card(recipe, lane.teachers, prepared)
        room = DistillationContext(
            recipe,
            job,
            lane.teachers[0],
            student,
            tokenizer,
            prepared.records,
            prepared.lessons,
            rows,
            start=Checkpoint.open(start).fingerprint,
            held_out=split.held_out,
            ranks=ranks,
        )
        with lane.hear(room) as yardsticks:
            examiner = FidelityEvaluator(lane, split, yardsticks)
            _report_findings(flight, ranks.on_main(partial(examiner.examine_start, student)), job)
            taught = _train_student(lane, room, start, card)
            details = {**kept, "records": prepared.counts, **lane.describe(), **taught.details}
            del student, room
            return ranks.on_main(lambda: _finish(examiner, taught, prepared, details))


def _make_trainer(recipe: DistillRecipe) -> type[DistillationTrainer]:
    """Return the lane of a recipe's kind of teacher; only a teacher in this process has ranks.

    Raises:
        RecipeError: If several processes were started for what one does.
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
    lane: DistillationTrainer, room: DistillationContext, start: Path, card: dict[str, Any]
) -> TrainedStudent:
    """Train the student by its course, write it, and return what both came to."""
    recipe, job, ranks = room.recipe, room.job, room.ranks
    steps = choose_candidate_steps(recipe.train.count_steps(len(room.lessons)), recipe.candidates)
    on_step = make_candidate_writer(
        job.output, start, steps, recipe.out, card, writes=ranks.is_main
    )
    lora = recipe.train.lora
    if lora is not None:
        room = replace(room, student=add_lora(room.student, lora, recipe.seed))
    with lane.course(room) as course:
        trained = train(
            room.student,
            course.source,
            course.objective,
            recipe.train,
            job,
            seed=recipe.seed,
            on_step=on_step,
            auxiliary=course.beside,
            ranks=ranks,
        )
        details = {"train": asdict(trained), **course.details}
    measured = bool(recipe.fidelity.records and room.held_out)
    whole = finish_card(card, lane.closing, measured=measured, candidates=len(steps))
    details["fingerprint"] = write_student(
        room.student, job.output, start, recipe.out, whole, in_place=True, writes=ranks.is_main
    )
    if lora is not None and lora.keep_adapter:
        base, folder = str(recipe.student), job.output / ADAPTER
        write_adapter(room.student, folder, base, recipe.out, writes=ranks.is_main)
        details["adapter"] = {"folder": ADAPTER, "base": room.start}
    return TrainedStudent(start, room.lessons, room.rows, trained, card, details)


def _finish(
    examiner: FidelityEvaluator,
    taught: TrainedStudent,
    prepared: PreparedData,
    details: dict[str, Any],
) -> Artifact:
    """Measure what was written, and publish it."""
    lane = examiner.lane
    recipe, job, teachers = lane.recipe, lane.job, lane.teachers
    fidelity = examiner.examine_student(taught)
    return job.finish(
        "checkpoint",
        parents=[*list_parents(recipe, job, teachers), *list_generator_parents(recipe)],
        origin=make_student_origin(lane.method, teachers, prepared.records).to_json(),
        details={
            **details,
            "parameters": Checkpoint.open(job.output).parameters,
            lane.fidelity_key: fidelity,
        },
    )


def _run_preflight(recipe: DistillRecipe, job: Job) -> PreflightReport:
    """Run the preflight, tell what is worth knowing, and stop where it cannot go well."""
    flight = run_preflight(recipe, job.out)
    flight.write(job.work)
    for line in flight.lines(least="note"):
        job.say(line)
    flight.raise_errors()
    return flight


def _report_findings(flight: PreflightReport, found: PreflightFinding | None, job: Job) -> None:
    """Add what was found once the student stood there."""
    if found is None:
        return
    flight.findings.append(found)
    flight.write(job.work)
    for line in PreflightReport([found]).lines(least="note"):
        job.say(line)
