"""Where a student starts: a checkpoint that is given, or one made of the teacher, once a job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillroom.checkpoints import Checkpoint
from stillroom.distill.encode import Lesson
from stillroom.distill.initialize import StudentPlan, initialize_student, plan_student
from stillroom.distill.prune_settings import PruneSettings
from stillroom.distill.teacher import Teacher
from stillroom.jobs import Job, atomic_write
from stillroom.models import resolve_checkpoint

__all__ = ["PRUNING_FILE", "prune_once", "start_student"]

PRUNING_FILE = "pruning.json"


def start_student(
    student: PruneSettings | str, job: Job, teacher: Teacher, lessons: Sequence[Lesson]
) -> tuple[Path, dict[str, Any]]:
    """Return the folder that the student starts from, and what artifact.json says of it.

    A student made of the teacher is written to the job's scratch folder, and what it keeps to
    ``output/pruning.json``; a resumed job finds both. The teacher itself may be given: then the
    student starts as its equal.

    Raises:
        CheckpointError: If a checkpoint cannot be read, or the teacher is not understood.
        RecipeError: If the teacher cannot give such a student.
    """
    if not isinstance(student, PruneSettings):
        return Checkpoint.open(resolve_checkpoint(student, say=job.say)).folder, {"layers_kept": []}
    folder = job.scratch / "student"
    kept = prune_once(student, job, teacher, lessons, folder)
    said: dict[str, Any] = {"layers_kept": kept["layers"]}
    said |= {key: kept[key] for key in ("teacher_shape", "student_shape") if key in kept}
    return folder, said


def prune_once(
    settings: PruneSettings, job: Job, teacher: Teacher, lessons: Sequence[Lesson], folder: Path
) -> dict[str, Any]:
    """Write the student to ``folder`` unless a killed run has, and return what it keeps.

    The weights are stored as the teacher's are. What is kept also stands in
    ``output/pruning.json``.

    Raises:
        CheckpointError: If the teacher is not understood.
        RecipeError: If the teacher cannot give such a student.
    """
    journal = job.journal("student")
    if "kept" not in journal or not (folder / "config.json").is_file():
        with job.phase("prune", unit="passes") as progress:
            plan = plan_student(
                teacher.checkpoint,
                settings,
                lambda: teacher.model,
                lessons[: settings.calibration_records],
                on_pass=progress.advance,
            )
            initialize_student(teacher.checkpoint.folder, folder, plan)
        journal.put("kept", plan.to_json())
        _tell(job, plan, Checkpoint.open(folder), teacher.checkpoint)
    kept: dict[str, Any] = journal["kept"]
    with atomic_write(job.output / PRUNING_FILE) as file:
        file.write(json.dumps(kept) + "\n")
    return kept


def _tell(job: Job, plan: StudentPlan, student: Checkpoint, teacher: Checkpoint) -> None:
    share = student.parameters / teacher.parameters
    job.say(f"the student keeps layers {', '.join(map(str, plan.layers))}")
    if plan.cut is not None and plan.width is not None:
        before = plan.width.teacher.to_json()
        sizes = ", ".join(
            f"{name} {before[name]} -> {size}"
            for name, size in plan.width.student.to_json().items()
            if size != before[name]
        )
        job.say(f"its sizes: {sizes}")
    for note in plan.notes:
        job.say(note)
    job.say(f"it has {student.parameters:,} parameters, {share:.1%} of the teacher's")
