"""The examination of a student: measured before and after, beside its teacher and its control.

The order keeps few models in memory: the start and the teacher are measured before training; after
it the control is trained alone, then each is loaded, measured and let go beside the teacher. Every
part is journaled, so that a killed job does none twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from stillroom.checkpoints import Checkpoint
from stillroom.distill.control import CONTROL, control_once
from stillroom.distill.encode import Lesson
from stillroom.distill.fidelity import Side
from stillroom.distill.fidelity_curves import read_losses
from stillroom.distill.fidelity_report import (
    FINAL,
    INITIAL,
    Budget,
    Near,
    build_report,
    write_fidelity,
)
from stillroom.distill.figures import Figures
from stillroom.distill.lane import Lane
from stillroom.distill.lessons import Split, make_lessons
from stillroom.distill.measuring import TEACHER, HeldOut
from stillroom.distill.preflight import Finding, judge_teacher
from stillroom.distill.teacher import Teacher
from stillroom.distill.timing import TIMINGS, measure_timings, write_timings
from stillroom.distill.yardstick import Yardstick
from stillroom.models import load_causal_lm
from stillroom.train.loop import TrainSummary

__all__ = ["Examiner", "Taught"]

_WEIGHTS = "*.safetensors"


@dataclass(frozen=True, slots=True)
class Taught:
    """What the student's training was and came to.

    Args:
        start: The checkpoint it started from.
        lessons: What it learned from.
        rows: Tokens of the vocabulary that took part.
        summary: Of the training loop.
        card: Of the student.
        details: What artifact.json keeps of it.
    """

    start: Path
    lessons: Sequence[Lesson]
    rows: int
    summary: TrainSummary
    card: dict[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Examiner:
    """Measures the sides of one job and writes its fidelity report.

    Args:
        lane: Says which teachers there are, and what of them is measured.
        split: Records to measure on, and to teach the control.
        yardsticks: One for each teacher that was asked; none where the teacher is compared with by
            whole distributions, or told nothing.
    """

    lane: Lane
    split: Split
    yardsticks: Sequence[Yardstick] = ()
    sides: dict[str, Side] = field(default_factory=dict)
    near: dict[str, list[Figures[Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Stand over the held-out records."""
        self.recipe, self.job = self.lane.recipe, self.lane.job
        records, teacher = self.split.held_out, self.lane.measured_teacher
        judge = teacher if self.lane.is_compared else None
        self._held = HeldOut(self.recipe, self.job, records, self.lane.tokenizer, judge)
        self._teachers_held = self._held
        if teacher is not None and judge is None:  # it reads the same records in its own tokens
            self._teachers_held = HeldOut(self.recipe, self.job, records, teacher.tokenizer)

    def examine_start(self, student: Any) -> Finding | None:
        """Measure the teacher, and the student that has learned nothing yet.

        Returns:
            Whether the teacher is better on these records; None where that is not measured.
        """
        teacher = self.lane.measured_teacher
        if teacher is not None:
            side = self._teachers_held.measure(TEACHER, lambda: teacher.model)
            self.sides[TEACHER] = side
        self._measure(INITIAL, lambda: student, writes=False)
        if teacher is None or not self.lane.is_compared or not self.recipe.fidelity.records:
            return None
        sides = self.sides[TEACHER].fidelity, self.sides[INITIAL].fidelity
        return judge_teacher(*sides, seed=self.recipe.seed)

    def examine_student(self, taught: Taught) -> dict[str, Any]:
        """Measure the student in the job's output, train and measure its control; report.

        The caller has let go of the student in memory.

        Returns:
            What artifact.json keeps of it.

        Raises:
            Cancelled: If the user stopped it; ``--resume`` goes on.
        """
        output, budgets = self.job.output, {FINAL: _budget(self.job.output, taught.summary)}
        self._unload()
        teacher = self.lane.measured_teacher
        if teacher is not None:
            budgets[TEACHER] = _budget(teacher.checkpoint.folder, None)
        folders = {FINAL: output}
        if self.recipe.fidelity.control and self.split.held_out and self.recipe.fidelity.records:
            folders[CONTROL], summary = self._train_control(taught)
            budgets[CONTROL] = _budget(folders[CONTROL], summary)
        if self.recipe.fidelity.speed and self.recipe.fidelity.records:
            self._time(output)
        for name, folder in folders.items():
            self._measure(name, _loader(folder))
        self._unload()
        return self._report(budgets)

    def _unload(self) -> None:
        for teacher in self.lane.teachers:
            teacher.unload()

    def _measure(self, name: str, load: Callable[[], Any], *, writes: bool = True) -> None:
        """Measure one model by itself or beside its teacher, and on every yardstick; once a job."""
        load = cache(load)
        self.sides[name] = self._held.measure(name, load, writes=writes)
        journal, key = self.job.journal("fidelity"), f"{name}, near"
        if key not in journal and self.yardsticks:
            with self.job.phase(f"nearness, {name}", len(self.yardsticks), "teachers") as progress:
                found = []
                for one in self.yardsticks:
                    self.job.check_cancelled()
                    found.append(one.measure(load()).to_json())
                    progress.advance()
            journal.put(key, found)
        rows = journal.get(key, [])
        self.near[name] = [
            one.figures.from_json(told) for one, told in zip(self.yardsticks, rows, strict=True)
        ]

    def _train_control(self, taught: Taught) -> tuple[Path, TrainSummary]:
        return control_once(
            self.recipe,
            self.job,
            taught.start,
            self._own_lessons(taught),
            taught.rows,
            taught.summary,
            taught.card,
        )

    def _own_lessons(self, taught: Taught) -> Sequence[Lesson]:
        """Return the records' own tokens as lessons, whatever the student learned from."""
        recipe = self.recipe
        if recipe.sequence is None and recipe.rationale is None:
            return taught.lessons
        return make_lessons(recipe, self.split, self.lane.tokenizer, self.job)[0]

    def _time(self, output: Path) -> None:
        here = [one for one in self.lane.teachers if isinstance(one, Teacher)]
        names = {
            "teacher" if len(here) == 1 else f"teacher {at + 1}": one.checkpoint.folder
            for at, one in enumerate(here)
        }
        speeds = measure_timings(self.job, {**names, "student": output})
        report = write_timings(self.job, speeds, seed=self.recipe.seed)
        ours, *theirs = (
            f"{report.metrics[f'{name}/decode_ms'].value:.1f} ms" for name in ("student", *names)
        )
        beside = f" (the teacher's {', '.join(theirs)})" if theirs else ""
        self.job.say(f"writing a token takes {ours}{beside}; {TIMINGS}.html")

    def _report(self, budgets: dict[str, Budget]) -> dict[str, Any]:
        """Write the report, tell its summary, and return what artifact.json keeps."""
        sides, seed, passed_over = self.sides, self.recipe.seed, self._held.passed_over
        names = " and ".join(teacher.name for teacher in self.lane.teachers)
        report = build_report(
            sides,
            budgets,
            title=f"{names} and {'its' if len(self.lane.teachers) == 1 else 'their'} student",
            seed=seed,
            passed_over=passed_over,
            near=None if self.lane.is_compared else self._near(),
            losses=self._losses(),
        )
        found: dict[str, Any] = {
            **(self._whole() if self.lane.is_compared else self.lane.report(self.near)),
            "held_out": len(self.split.held_out),
            "measured": len(sides[INITIAL].fidelity.rows),
        }
        beside: dict[str, Any] = {
            "budget": {name: asdict(budget) for name, budget in budgets.items()},
            "passed_over": passed_over,
            "answers": {
                name: [asdict(answer) for answer in side.answers]
                for name, side in sides.items()
                if side.answers
            },
        }
        if not self.lane.is_compared:
            beside["by_themselves"] = {name: _alone(side) for name, side in sides.items()}
        write_fidelity(self.job.output, report, {**found, **beside})
        self.job.say(report.summary)
        return found

    def _whole(self) -> dict[str, Any]:
        """Return the rows and summaries of students beside a teacher in this process."""
        rows = {name: side.fidelity for name, side in self.sides.items() if name != TEACHER}
        found: dict[str, Any] = {name: one.to_json() for name, one in rows.items()}
        if any(one.rows for one in rows.values()):
            found["summary"] = {name: one.summarize(self.recipe.seed) for name, one in rows.items()}
        return found

    def _losses(self) -> dict[str, list[tuple[int, float]]]:
        """Return what student and control lowered, by step, under names that say what it was."""
        told = {"loss": f"student, {self.lane.loss}", f"{CONTROL}/loss": "control, cross-entropy"}
        found = read_losses(self.job.work / "metrics.jsonl", list(told))
        return {told[name]: points for name, points in found.items() if points}

    def _near(self) -> list[Near]:
        names = [one.name for one in self.yardsticks]
        return [
            Near(
                one.name if names.count(one.name) == 1 else f"{one.name} ({at + 1})",
                {name: found[at] for name, found in self.near.items()},
                one.note,
            )
            for at, one in enumerate(self.yardsticks)
        ]


def _alone(side: Side) -> list[dict[str, Any]]:
    """Return what a model says of each record by itself: plain values."""
    names = ("record", "loss", "entropy", "brier", "tokens")
    return [{name: getattr(row, name) for name in names} for row in side.fidelity.rows]


def _loader(folder: Path) -> Callable[[], Any]:
    return lambda: load_causal_lm(folder, dtype="float32")[0]


def _budget(folder: Path, summary: TrainSummary | None) -> Budget:
    files = folder.glob(_WEIGHTS) if folder.is_dir() else [folder]
    return Budget(
        summary.steps if summary else 0,
        summary.tokens if summary else 0,
        summary.positions if summary else 0,
        Checkpoint.open(folder).parameters,
        sum(file.stat().st_size for file in files),
    )
