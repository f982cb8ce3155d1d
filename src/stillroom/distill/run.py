"""The distillation job, top to bottom: preflight, lessons, student, teacher, training, fidelity.

One way for every kind of teacher; what differs between them is in its lane.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from stillroom.checkpoints import Checkpoint
from stillroom.distill.checks import run_preflight
from stillroom.distill.cross_lane import CrossLane
from stillroom.distill.examining import Examiner, Taught
from stillroom.distill.lane import HomeLane, Lane
from stillroom.distill.lessons import split_records
from stillroom.distill.lineage import (
    close_card,
    list_parents,
    student_card,
    student_origin,
    warn_of_teachers,
)
from stillroom.distill.preflight import Finding, Preflight
from stillroom.distill.preparing import Prepared, writer_parents
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.sizing import estimate
from stillroom.distill.teachers import open_teachers
from stillroom.distill.teaching import Classroom, refuse_course
from stillroom.distill.told_lane import ToldLane
from stillroom.distill.writing import (
    ADAPTER,
    candidate_steps,
    keep_candidates,
    write_adapter,
    write_student,
)
from stillroom.distill.written_lane import WrittenLane
from stillroom.jobs import Job
from stillroom.jobs.processes import refuse_several
from stillroom.models import load_causal_lm
from stillroom.objects import local
from stillroom.provenance import Artifact
from stillroom.train.loop import train
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
    refuse_course(recipe)
    kind = _lane_of(recipe)
    with (
        Ranks() as ranks,
        fixed_threads(recipe.train.threads),
        open_teachers(recipe.teacher, job) as chairs,
    ):
        lane = kind(recipe, job, chairs)
        warn_of_teachers(lane.teachers, job)
        split = split_records(local(recipe.records))
        prepared = ranks.on_main(lambda: lane.prepare(split))
        start, kept = ranks.on_main(lambda: lane.start(prepared))
        student, tokenizer = load_causal_lm(start, dtype="float32")
        rows = ranks.on_main(partial(lane.admit, student, tokenizer))
        card = student_card(recipe, lane.teachers, prepared)
        room = Classroom(
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
            examiner = Examiner(lane, split, yardsticks)
            _tell(flight, ranks.on_main(partial(examiner.examine_start, student)), job)
            taught = _teach(lane, room, start, card)
            details = {**kept, "records": prepared.counts, **lane.describe(), **taught.details}
            del student, room
            return ranks.on_main(lambda: _finish(examiner, taught, prepared, details))


def _lane_of(recipe: DistillRecipe) -> type[Lane]:
    """Return the lane of a recipe's kind of teacher; only a teacher in this process has ranks.

    Raises:
        RecipeError: If several processes were started for what one does.
    """
    if recipe.crossing is not None:
        refuse_several("a distillation across tokenizers")
        return CrossLane
    if isinstance(recipe.teacher, str):
        return HomeLane
    if recipe.teacher_only_writes:
        refuse_several("a distillation from a server that writes")
        return WrittenLane
    refuse_several("a distillation from a server or from several teachers")
    return ToldLane


def _teach(lane: Lane, room: Classroom, start: Path, card: dict[str, Any]) -> Taught:
    """Train the student by its course, write it, and return what both came to."""
    recipe, job, ranks = room.recipe, room.job, room.ranks
    steps = candidate_steps(recipe.train.count_steps(len(room.lessons)), recipe.candidates)
    on_step = keep_candidates(job.output, start, steps, recipe.out, card, writes=ranks.is_main)
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
            beside=course.beside,
            ranks=ranks,
        )
        details = {"train": asdict(trained), **course.details}
    measured = bool(recipe.fidelity.records and room.held_out)
    whole = close_card(card, lane.closing, measured=measured, candidates=len(steps))
    details["fingerprint"] = write_student(
        room.student, job.output, start, recipe.out, whole, in_place=True, writes=ranks.is_main
    )
    if lora is not None and lora.keep_adapter:
        base, folder = str(recipe.student), job.output / ADAPTER
        write_adapter(room.student, folder, base, recipe.out, writes=ranks.is_main)
        details["adapter"] = {"folder": ADAPTER, "base": room.start}
    return Taught(start, room.lessons, room.rows, trained, card, details)


def _finish(
    examiner: Examiner, taught: Taught, prepared: Prepared, details: dict[str, Any]
) -> Artifact:
    """Measure what was written, and publish it."""
    lane = examiner.lane
    recipe, job, teachers = lane.recipe, lane.job, lane.teachers
    fidelity = examiner.examine_student(taught)
    return job.finish(
        "checkpoint",
        parents=[*list_parents(recipe, job, teachers), *writer_parents(recipe)],
        origin=student_origin(lane.method, teachers, prepared.records).to_json(),
        details={
            **details,
            "parameters": Checkpoint.open(job.output).parameters,
            lane.fidelity_key: fidelity,
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
