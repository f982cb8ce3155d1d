"""The examination of a student: measured before and after, beside its teacher and its control.

The order keeps few models in memory: the start and the teacher are measured before training; after
it the control is trained alone, then each is loaded, measured and let go beside the teacher. Every
part is journaled, so that a killed job does none twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stillroom.checkpoints import Checkpoint
from stillroom.distill.control import CONTROL, control_once
from stillroom.distill.encode import Lesson
from stillroom.distill.fidelity import Side
from stillroom.distill.fidelity_report import FINAL, INITIAL, Budget, build_report, write_fidelity
from stillroom.distill.lessons import Split, make_lessons
from stillroom.distill.measuring import TEACHER, HeldOut
from stillroom.distill.preflight import Finding, judge_teacher
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.teacher import Teacher
from stillroom.distill.timing import TIMINGS, measure_timings, write_timings
from stillroom.jobs import Job
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
    """

    start: Path
    lessons: Sequence[Lesson]
    rows: int
    summary: TrainSummary
    card: dict[str, Any]


@dataclass
class Examiner:
    """Measures the sides of one job and writes its fidelity report."""

    recipe: DistillRecipe
    job: Job
    teacher: Teacher
    split: Split
    sides: dict[str, Side] = field(default_factory=dict)
    held: HeldOut = field(init=False)

    def __post_init__(self) -> None:
        """Stand over the held-out records."""
        self.held = HeldOut(self.recipe, self.job, self.teacher, self.split.held_out)

    def examine_start(self, student: Any) -> Finding | None:
        """Measure the teacher, and the student that has learned nothing yet.

        Returns:
            Whether the teacher is better on these records; None where none are measured.
        """
        self._measure(TEACHER, lambda: self.teacher.model)
        self._measure(INITIAL, lambda: student, writes=False)
        if not self.recipe.fidelity.records:
            return None
        sides = self.sides[TEACHER].fidelity, self.sides[INITIAL].fidelity
        return judge_teacher(*sides, seed=self.recipe.seed)

    def examine_student(self, taught: Taught) -> dict[str, Any]:
        """Measure the student in the job's output, train and measure its control; report.

        The caller has let go of the student in memory.

        Returns:
            What artifact.json keeps under ``fidelity``.

        Raises:
            Cancelled: If the user stopped it; ``--resume`` goes on.
        """
        self.teacher.unload()
        output, budgets = self.job.output, {FINAL: _budget(self.job.output, taught.summary)}
        budgets[TEACHER] = _budget(self.teacher.checkpoint.folder, None)
        folders = {FINAL: output}
        if self.recipe.fidelity.control and self.split.held_out and self.recipe.fidelity.records:
            folders[CONTROL], summary = self._train_control(taught)
            budgets[CONTROL] = _budget(folders[CONTROL], summary)
        if self.recipe.fidelity.speed:
            self._time(output)
        for name, folder in folders.items():
            self._measure(name, _loader(folder))
        self.teacher.unload()
        return self._report(budgets)

    def _measure(self, name: str, load: Callable[[], Any], *, writes: bool = True) -> None:
        self.sides[name] = self.held.measure(name, load, writes=writes)

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
        return make_lessons(recipe, self.split, self.teacher.tokenizer, self.job)[0]

    def _time(self, output: Path) -> None:
        self.teacher.unload()
        names = {"teacher": self.teacher.checkpoint.folder, "student": output}
        speeds = measure_timings(self.job, names)
        report = write_timings(self.job, speeds, seed=self.recipe.seed)
        ours, theirs = (
            report.metrics[f"{name}/decode_ms"].value for name in ("student", "teacher")
        )
        self.job.say(
            f"writing a token takes {ours:.1f} ms (the teacher's {theirs:.1f} ms); {TIMINGS}.html"
        )

    def _report(self, budgets: dict[str, Budget]) -> dict[str, Any]:
        sides, seed = self.sides, self.recipe.seed
        report = build_report(
            sides,
            budgets,
            title=str(self.teacher.name) + " and its student",
            seed=seed,
            passed_over=self.held.passed_over,
        )
        rows = {name: side.fidelity.to_json() for name, side in sides.items() if name != TEACHER}
        found: dict[str, Any] = {
            **rows,
            "held_out": len(self.split.held_out),
            "measured": len(sides[INITIAL].fidelity.rows),
        }
        if found["measured"]:
            found["summary"] = {name: sides[name].fidelity.summarize(seed) for name in rows}
        said = {name: asdict(budget) for name, budget in budgets.items()}
        write_fidelity(
            self.job.output,
            report,
            {
                **found,
                "budget": said,
                "passed_over": self.held.passed_over,
                "answers": {
                    name: [asdict(answer) for answer in side.answers]
                    for name, side in sides.items()
                    if side.answers
                },
            },
        )
        self.job.say(report.summary)
        return found


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
