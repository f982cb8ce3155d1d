"""The distillation job of teachers that are not one checkpoint in this process, top to bottom.

A server, or several teachers of one vocabulary. Each is asked once, for the records it teaches and
the held-out ones, into a cache of its own; then the student learns from the caches, so that no two
teachers are in memory together. How near the student is to each of them is measured from what they
told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.checkpoints import Checkpoint
from stillroom.distill.cache import TeacherCache
from stillroom.distill.control import CONTROL, control_once
from stillroom.distill.encode import Batch, Lesson, encode_lessons, make_batch
from stillroom.distill.engine import DistillObjective
from stillroom.distill.lessons import Split, make_lessons, split_records
from stillroom.distill.lineage import list_parents, student_card, student_origin, warn_of_teachers
from stillroom.distill.mixing import MixedBatch, MixedObjective, join_targets
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.rollout_course import rollout_course
from stillroom.distill.start import start_student
from stillroom.distill.teacher import Teacher
from stillroom.distill.teachers import (
    AnyTeacher,
    Chair,
    as_local,
    assign_records,
    common_rows_of,
    open_teachers,
)
from stillroom.distill.teaching import Classroom, Course, refuse_course
from stillroom.distill.told_fidelity import NOTE, ToldFidelity, measure_told
from stillroom.distill.writing import candidate_steps, keep_candidates, write_student
from stillroom.jobs import Job, atomic_write
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.provenance import Artifact
from stillroom.train.loop import TrainSummary, train
from stillroom.train.lora import add_lora
from stillroom.train.precision import choose_precision, fixed_threads
from stillroom.train.source import RecordSource

__all__ = ["run_teachers"]

_CLOSING = (
    "`fidelity.json` says how near it is to each teacher on held-out records; `candidates/` holds "
    "earlier steps of the same run."
)


@dataclass(frozen=True)
class _Room:
    """What is known once the records are read and the student is loaded."""

    recipe: DistillRecipe
    job: Job
    chairs: list[Chair]
    split: Split
    lessons: list[Lesson]
    held_out: list[Lesson]
    seats: Mapping[str, tuple[int, ...]]
    counts: dict[str, Any]
    rows: int
    precision: str

    @property
    def mixes(self) -> bool:
        """Whether more than one teacher speaks of a record."""
        return len(self.chairs) > 1 and self.chairs[0].source is None

    @property
    def learned(self) -> list[Lesson]:
        """The lessons whose distributions are learned from: with rollouts there may be none."""
        policy, asks = self.recipe.rollouts, self.recipe.method.needs_target
        return self.lessons if policy is None or (asks and policy.learns_from_records) else []

    def of_seat(self, seat: int, lessons: Sequence[Lesson]) -> list[Lesson]:
        """Return the lessons that one teacher teaches."""
        return [lesson for lesson in lessons if seat in self.seats[lesson.record_id]]


def run_teachers(recipe: DistillRecipe, job: Job) -> Artifact:
    """Distill a server, or several teachers, into a student.

    Raises:
        BackendError: If a server cannot be reached or tells too little.
        DataError: If records, a cache or a loss cannot be used, or a record has no teacher.
        CheckpointError: If a checkpoint is missing, or a teacher has another vocabulary.
        Cancelled: If the user stopped it; ``--resume`` goes on.
    """
    refuse_course(recipe)
    with (
        fixed_threads(recipe.train.threads),
        open_teachers(recipe.teacher, job) as chairs,
    ):
        teachers = [chair.teacher for chair in chairs]
        warn_of_teachers(teachers, job)
        split = split_records(Path(recipe.records))
        lessons, counts = make_lessons(recipe, split, teachers[0].tokenizer, job)
        start, kept = _start(recipe, job, teachers[0], lessons)
        student, tokenizer = load_causal_lm(start, dtype="float32")
        rows = common_rows_of(chairs, student, tokenizer)
        room = _seat(recipe, job, chairs, split, (lessons, counts), rows, student)
        with _listen(room) as (told, held):
            initial = _measure("initial", room, student, held)
            card = student_card(
                recipe, teachers, room.counts, loss=recipe.method.method_name(), closing=_CLOSING
            )
            trained, fingerprint = _train(room, (student, tokenizer), start, told, card)
            del student
            measured = {"initial": initial, "final": _measure("final", room, job.output, held)}
            if recipe.fidelity.control and room.held_out:
                folder, _ = control_once(recipe, job, start, lessons, rows, trained, card)
                measured[CONTROL] = _measure(CONTROL, room, folder, held)
            headers = [cache.header.model_dump() for cache in told]
        fidelity = _report_fidelity(room, measured)
        parents = list_parents(recipe, job, teachers)
        method = f"distill.methods.{recipe.method.method_name()}"
        origin = student_origin(method, teachers, split.train)
        details = {
            "fingerprint": fingerprint,
            "teachers": [_describe(chair) for chair in chairs],
            "parameters": Checkpoint.open(job.output).parameters,
            **kept,
            "records": room.counts,
            "train": asdict(trained),
            "caches": headers,
            "fidelity": fidelity,
        }
    return job.finish("checkpoint", parents=parents, origin=origin.to_json(), details=details)


def _start(
    recipe: DistillRecipe, job: Job, teacher: AnyTeacher, lessons: Sequence[Lesson]
) -> tuple[Path, dict[str, Any]]:
    """Return where the student starts; only one made of the teacher needs the teacher's weights."""
    if isinstance(recipe.student, str):
        path = resolve_checkpoint(recipe.student, say=job.say)
        return Checkpoint.open(path).folder, {"layers_kept": []}
    return start_student(recipe.student, job, as_local(teacher), lessons)


def _seat(
    recipe: DistillRecipe,
    job: Job,
    chairs: list[Chair],
    split: Split,
    encoded: tuple[list[Lesson], dict[str, Any]],
    rows: int,
    student: nn.Module,
) -> _Room:
    """Give every record its teachers, and every lesson the weight of its teacher."""
    held = split.held_out[: recipe.fidelity.records]
    seats = assign_records(chairs, [*split.train, *held], recipe.source_field)
    lessons, counts = encoded
    if len(chairs) > 1:
        taught = [
            sum(at in seats[lesson.record_id] for lesson in lessons) for at in range(len(chairs))
        ]
        told = [
            f"{chair.teacher.name} {count}" for chair, count in zip(chairs, taught, strict=True)
        ]
        job.say(f"records that each teaches: {', '.join(told)}")
        counts = {**counts, "taught": taught}
    if chairs[0].source is not None or len(chairs) == 1:
        lessons = [
            replace(lesson, weight=lesson.weight * chairs[seats[lesson.record_id][0]].weight)
            for lesson in lessons
        ]
    held_out, _ = encode_lessons(
        chairs[0].teacher.tokenizer, held, max_tokens=recipe.max_tokens, include_prompt=False
    )
    precision = choose_precision(recipe.train.precision, next(student.parameters()).device)
    return _Room(recipe, job, chairs, split, lessons, held_out, seats, counts, rows, precision)


@contextmanager
def _listen(room: _Room) -> Iterator[tuple[list[TeacherCache], list[TeacherCache]]]:
    """Ask every teacher once; yield their caches of the records, and of the held-out ones."""
    recipe = room.recipe
    base = Path(recipe.targets.cache) if recipe.targets.cache else room.job.scratch / "cache"
    # What is measured is always the likeliest tokens at temperature 1.
    likeliest = {"mode": "top_k", "k": min(recipe.targets.k, room.rows), "cache": None}
    measured = recipe.model_copy(
        update={
            "targets": recipe.targets.model_copy(update=likeliest),
            "method": recipe.method.model_copy(update={"temperature": 1.0}),
        }
    )
    told: list[TeacherCache] = []
    held: list[TeacherCache] = []
    headers = [
        [chair.teacher.header(one, room.rows, room.precision) for chair in room.chairs]
        for one in (recipe, measured)
    ]
    # By source, rows of several caches stand in one batch, and so must have one width.
    widths = [min(header.width for header in row) for row in headers]
    with ExitStack() as stack:
        for at, chair in enumerate(room.chairs):
            folder = base if len(room.chairs) == 1 else base / chair.teacher.fingerprint[:16]
            places = (folder, room.job.scratch / f"held-out-{at}")
            for which, (place, kept) in enumerate(zip(places, (told, held), strict=True)):
                header = headers[which][at].model_copy(update={"width": widths[which]})
                cache = stack.enter_context(TeacherCache.open(place, header))
                lessons = room.of_seat(at, (room.learned, room.held_out)[which])
                chair.teacher.capture(lessons, cache, room.job)
                cache.verify(lessons)
                kept.append(cache)
            chair.teacher.unload()
        yield told, held


def _train(
    room: _Room,
    loaded: tuple[Any, Any],
    start: Path,
    told: Sequence[TeacherCache],
    card: dict[str, Any],
) -> tuple[TrainSummary, str]:
    """Train the student, write it, and return the summary and the fingerprint."""
    recipe, job = room.recipe, room.job
    student, tokenizer = loaded
    steps = candidate_steps(recipe.train.count_steps(len(room.lessons)), recipe.candidates)
    on_step = keep_candidates(job.output, start, steps, recipe.out, card)
    model = add_lora(student, recipe.train.lora, recipe.seed) if recipe.train.lora else student
    with _course(room, model, tokenizer, start, told) as course:
        trained = train(
            model,
            course.source,
            course.objective,
            recipe.train,
            job,
            seed=recipe.seed,
            on_step=on_step,
        )
    return trained, write_student(model, job.output, start, recipe.out, card, in_place=True)


@contextmanager
def _course(
    room: _Room, model: Any, tokenizer: Any, start: Path, told: Sequence[TeacherCache]
) -> Iterator[Course]:
    """Prepare what is learned from: the student's own text, or the records alone."""
    recipe = room.recipe
    if recipe.rollouts is not None:
        teacher = room.chairs[0].teacher
        classroom = Classroom(
            recipe,
            room.job,
            teacher,
            model,
            tokenizer,
            room.split.train,
            room.lessons,
            room.rows,
            start=Checkpoint.open(start).fingerprint,
            held_out=room.split.held_out,
        )
        with rollout_course(classroom, told[0]) as course:
            yield course
        return
    objective: Any = DistillObjective(recipe.method, rows=room.rows, precision=room.precision)
    if room.mixes:
        weights = [chair.weight for chair in room.chairs]
        objective = MixedObjective(recipe.method, weights, rows=room.rows, precision=room.precision)
    yield Course(_source(room, told, next(model.parameters()).device), objective)


def _source(room: _Room, told: Sequence[TeacherCache], device: Any) -> RecordSource[Lesson, Any]:
    def load(chosen: Sequence[Lesson]) -> Batch | MixedBatch:
        if room.mixes:
            targets = tuple(cache.target(chosen, device) for cache in told)
            return MixedBatch(make_batch(chosen, None, device), targets)
        heard = [
            told[room.seats[lesson.record_id][0]].target([lesson], device) for lesson in chosen
        ]
        return make_batch(chosen, join_targets(heard), device)

    lessons, settings = room.lessons, room.recipe.train
    return RecordSource(
        lessons,
        ids=[f"{lesson.key} {lesson.weight} {room.seats[lesson.record_id]}" for lesson in lessons],
        lengths=[len(lesson.ids) for lesson in lessons],
        valid=[len(lesson.positions) for lesson in lessons],
        load=load,
        batch_size=settings.batch_size,
        micro_tokens=settings.micro_tokens,
        seed=room.recipe.seed,
    )


def _measure(
    name: str, room: _Room, student: Any, held: Sequence[TeacherCache]
) -> list[ToldFidelity]:
    """Return the distance of a student, or of the one in a folder, to each teacher; once a job."""
    journal = room.job.journal("fidelity")
    if name not in journal:
        if isinstance(student, Path):
            student, _ = load_causal_lm(student, dtype="float32")
        found = []
        total = sum(len(room.of_seat(at, room.held_out)) for at in range(len(held)))
        with room.job.phase(f"fidelity, {name}", total, "records") as progress:
            for at, cache in enumerate(held):
                lessons = room.of_seat(at, room.held_out)
                found.append(measure_told(student, lessons, cache).to_json())
                progress.advance(len(lessons))
        journal.put(name, found)
    return [ToldFidelity.from_json(rows) for rows in journal[name]]


def _report_fidelity(room: _Room, measured: Mapping[str, Sequence[ToldFidelity]]) -> dict[str, Any]:
    """Write output/fidelity.json, tell the user, and return what artifact.json keeps.

    Args:
        room: Of the job.
        measured: Initial and final student, and the control if there is one; one figure a teacher.
    """
    seed, each = room.recipe.seed, []
    for at, chair in enumerate(room.chairs):
        sides = {name: found[at] for name, found in measured.items()}
        part: dict[str, Any] = {"teacher": chair.teacher.name}
        part |= {name: found.to_json() for name, found in sides.items()}
        if sides["initial"].rows:
            part["summary"] = {name: found.summarize(seed) for name, found in sides.items()}
            _say_fidelity(room.job, chair.teacher.name, sides)
        else:
            room.job.say(f"no held-out record was measured against {chair.teacher.name}")
        each.append(part)
    report: dict[str, Any] = {
        "kind": "told",
        "note": NOTE,
        **{name: each[0][name] for name in (*measured, "summary") if name in each[0]},
        "teachers": each,
        "held_out": len(room.split.held_out),
        "measured": len(room.held_out),
    }
    with atomic_write(room.job.output / "fidelity.json") as file:
        file.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report


def _say_fidelity(job: Job, name: str, sides: Mapping[str, ToldFidelity]) -> None:
    was, now = sides["initial"].mean("kl"), sides["final"].mean("kl")
    control = sides[CONTROL].mean("kl") if CONTROL in sides else None
    beside = "" if control is None else f"; {control:.3f} after cross-entropy alone, as long"
    job.say(
        f"KL({name} || student) on {len(sides['final'].rows)} held-out records: {was:.3f} before, "
        f"{now:.3f} after ({1 - now / was if was else 0:.0%} less){beside}"
    )


def _describe(chair: Chair) -> dict[str, Any]:
    teacher = chair.teacher
    found: dict[str, Any] = {
        "name": teacher.name,
        "fingerprint": teacher.fingerprint,
        "license": teacher.license,
        "weight": chair.weight,
        "source": chair.source,
        "about": teacher.about,
    }
    if isinstance(teacher, Teacher):
        found["parameters"] = teacher.checkpoint.parameters
    return found
