"""The distillation job, top to bottom: preflight, lessons, student, capture, training, fidelity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.checkpoints import Checkpoint
from stillroom.distill.checks import run_preflight
from stillroom.distill.cross_run import run_crossing
from stillroom.distill.examining import Examiner, Taught
from stillroom.distill.lessons import split_records
from stillroom.distill.lineage import list_parents, student_card, student_origin, warn_of_teachers
from stillroom.distill.preflight import Finding, Preflight
from stillroom.distill.preparing import Prepared, prepare_lessons, writer_parents
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.sizing import estimate
from stillroom.distill.start import start_student
from stillroom.distill.teacher import Teacher, common_rows
from stillroom.distill.teachers_run import run_teachers
from stillroom.distill.teaching import Classroom, open_course, refuse_course
from stillroom.distill.writing import (
    ADAPTER,
    candidate_steps,
    keep_candidates,
    write_adapter,
    write_student,
)
from stillroom.jobs import Job
from stillroom.jobs.processes import refuse_several
from stillroom.models import load_causal_lm
from stillroom.provenance import Artifact
from stillroom.train.loop import TrainSummary, train
from stillroom.train.lora import add_lora
from stillroom.train.precision import fixed_threads
from stillroom.train.ranks import Ranks

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
    flight = _fly_before(recipe, job)
    if recipe.crossing is not None:
        refuse_several("a distillation across tokenizers")
        return run_crossing(recipe, recipe.crossing, job)
    if not isinstance(recipe.teacher, str):
        refuse_several("a distillation from a server or from several teachers")
        return run_teachers(recipe, job)
    refuse_course(recipe)
    with Ranks() as ranks, fixed_threads(recipe.train.threads):
        teacher = Teacher.find(recipe.teacher, job)
        warn_of_teachers([teacher], job)
        split = split_records(Path(recipe.records))
        prepared = ranks.on_main(lambda: prepare_lessons(recipe, split, teacher, job))
        lessons, counts = prepared.lessons, prepared.counts
        start, kept = ranks.on_main(lambda: start_student(recipe.student, job, teacher, lessons))
        student, tokenizer = load_causal_lm(start, dtype="float32")
        rows = ranks.on_main(partial(common_rows, teacher, student, tokenizer))
        examiner = Examiner(recipe, job, teacher, split)
        _tell(flight, ranks.on_main(partial(examiner.examine_start, student)), job)
        card = student_card(recipe, [teacher], counts, loss=recipe.method.method_name())
        steps = candidate_steps(recipe.train.count_steps(len(lessons)), recipe.candidates)
        on_step = keep_candidates(job.output, start, steps, recipe.out, card, writes=ranks.is_main)
        model = add_lora(student, recipe.train.lora, recipe.seed) if recipe.train.lora else student
        room = Classroom(
            recipe,
            job,
            teacher,
            model,
            tokenizer,
            prepared.records,
            lessons,
            rows,
            start=Checkpoint.open(start).fingerprint,
            held_out=split.held_out,
            ranks=ranks,
        )
        trained, taught = _teach(recipe, room, on_step)
        fingerprint = write_student(
            model, job.output, start, recipe.out, card, in_place=True, writes=ranks.is_main
        )
        if recipe.train.lora is not None and recipe.train.lora.keep_adapter:
            base, folder = str(recipe.student), job.output / ADAPTER
            write_adapter(model, folder, base, recipe.out, writes=ranks.is_main)
            taught["adapter"] = {"folder": ADAPTER, "base": room.start}
        said = Taught(start, lessons, rows, trained, card)
        details = {
            "fingerprint": fingerprint,
            "teacher": teacher.checkpoint.fingerprint,
            "teacher_parameters": teacher.checkpoint.parameters,
            **kept,
            "records": counts,
            "train": asdict(trained),
            **taught,
        }
        del student, model, room
        return ranks.on_main(lambda: _finish(recipe, job, examiner, said, prepared, details))


def _finish(
    recipe: DistillRecipe,
    job: Job,
    examiner: Examiner,
    taught: Taught,
    prepared: Prepared,
    details: dict[str, Any],
) -> Artifact:
    """Measure what was written, and publish it."""
    fidelity, teacher = examiner.examine_student(taught), examiner.teacher
    return job.finish(
        "checkpoint",
        parents=[*list_parents(recipe, job, [teacher]), *writer_parents(recipe)],
        origin=student_origin(_method(recipe), [teacher], prepared.records).to_json(),
        details={
            **details,
            "parameters": Checkpoint.open(job.output).parameters,
            "fidelity": fidelity,
        },
    )


def _fly_before(recipe: DistillRecipe, job: Job) -> Preflight:
    """Run the preflight, tell what is worth knowing, and stop where it cannot go well."""
    flight = run_preflight(recipe, job.out)
    flight.write(job.work)
    for line in flight.lines(least="note"):
        job.say(line)
    flight.raise_errors()
    return flight


def _tell(flight: Preflight, found: Finding | None, job: Job) -> None:
    """Add what was found once the student stood there."""
    if found is None:
        return
    flight.findings.append(found)
    flight.write(job.work)
    for line in Preflight([found]).lines(least="note"):
        job.say(line)


def _teach(
    recipe: DistillRecipe,
    room: Classroom,
    on_step: Callable[[int, nn.Module], None],
) -> tuple[TrainSummary, dict[str, Any]]:
    """Train the student by the course that the recipe asks for; return what both came to."""
    with open_course(room) as course:
        trained = train(
            room.student,
            course.source,
            course.objective,
            recipe.train,
            room.job,
            seed=recipe.seed,
            on_step=on_step,
            beside=course.beside,
            ranks=room.ranks,
        )
        return trained, dict(course.details)


def _method(recipe: DistillRecipe) -> str:
    return f"distill.methods.{recipe.method.method_name()}"
