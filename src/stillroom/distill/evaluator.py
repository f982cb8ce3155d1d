"""Evaluation of a student before and after training, beside its teacher and a baseline.

The order keeps few models in memory: the start and the teacher are measured before training; after
it the control is trained alone, then each is loaded, measured and let go beside the teacher. Every
part is journaled, so that a killed job does none twice.

Equal budget means: the same start, the same records in the same order, the same optimizer, schedule
and seed, as many optimizer steps, and as many tokens that bear loss. Where the student learns from
other text than the records (its own rollouts, a teacher's answers), the control still reads the
records alone; the number of records in its steps is then chosen so that the tokens come out equal,
and both counts are reported. The teacher's forward passes are no part of the budget. What is left
between student and control is what the teacher's distributions were worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.preparation import make_record_source, tokenize_training_records
from stillroom.distill.data.tokenized import Batch, TokenizedRecord, make_batch
from stillroom.distill.evaluation.measurement import (
    TIMINGS,
    HeldOutEvaluator,
    measure_timings,
    write_timings,
)
from stillroom.distill.evaluation.metrics import BASELINE, TEACHER, ModelFidelity, RecordMetrics
from stillroom.distill.evaluation.report import (
    FINAL,
    INITIAL,
    TeacherDistance,
    TrainingBudget,
    build_report,
    write_fidelity_report,
)
from stillroom.distill.evaluation.tables import read_loss_curves
from stillroom.distill.evaluation.teacher_distance import TeacherReference
from stillroom.distill.losses.lm_head import CHUNK_ROWS, LMHead, compute_chunked_loss, get_body
from stillroom.distill.output import write_student
from stillroom.distill.preflight.audits import PreflightFinding, check_teacher_advantage
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.teachers.local import LocalTeacher
from stillroom.distill.trainers.trainer import DistillationTrainer
from stillroom.jobs import Job
from stillroom.models import load_causal_lm
from stillroom.train.data import RecordSplit
from stillroom.train.distributed import ProcessGroup
from stillroom.train.loop import Loss, TrainSummary, train
from stillroom.train.lora import add_lora
from stillroom.train.precision import choose_precision, matmul_dtype

__all__ = [
    "BaselineLoss",
    "FidelityEvaluator",
    "TrainedStudent",
    "compute_baseline_batch_size",
    "train_baseline",
    "train_baseline_once",
]


_WEIGHT_FILES = "*.safetensors"


@dataclass(frozen=True, slots=True)
class TrainedStudent:
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
    lessons: Sequence[TokenizedRecord]
    rows: int
    summary: TrainSummary
    card: dict[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class FidelityEvaluator:
    """Measures the sides of one job and writes its fidelity report.

    Args:
        lane: Says which teachers there are, and what of them is measured.
        split: Records to measure on, and to teach the control.
        yardsticks: One for each teacher that was asked; none where the teacher is compared with by
            whole distributions, or told nothing.
    """

    lane: DistillationTrainer
    split: RecordSplit
    yardsticks: Sequence[TeacherReference] = ()
    sides: dict[str, ModelFidelity] = field(default_factory=dict)
    near: dict[str, list[RecordMetrics[Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Stand over the held-out records."""
        self.recipe, self.job = self.lane.recipe, self.lane.job
        records, teacher = self.split.held_out, self.lane.measured_teacher
        judge = teacher if self.lane.is_compared else None
        self._held = HeldOutEvaluator(self.recipe, self.job, records, self.lane.tokenizer, judge)
        self._teachers_held = self._held
        if teacher is not None and judge is None:  # it reads the same records in its own tokens
            self._teachers_held = HeldOutEvaluator(
                self.recipe, self.job, records, teacher.tokenizer
            )

    def examine_start(self, student: Any) -> PreflightFinding | None:
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
        return check_teacher_advantage(*sides, seed=self.recipe.seed)

    def examine_student(self, taught: TrainedStudent) -> dict[str, Any]:
        """Measure the student in the job's output, train and measure its control; report.

        The caller has let go of the student in memory.

        Returns:
            What artifact.json keeps of it.

        Raises:
            Cancelled: If the user stopped it; ``--resume`` goes on.
        """
        output, budgets = self.job.output, {FINAL: _measure_budget(self.job.output, taught.summary)}
        self._unload()
        teacher = self.lane.measured_teacher
        if teacher is not None:
            budgets[TEACHER] = _measure_budget(teacher.checkpoint.folder, None)
        folders = {FINAL: output}
        if self.recipe.fidelity.control and self.split.held_out and self.recipe.fidelity.records:
            folders[BASELINE], summary = self._train_control(taught)
            budgets[BASELINE] = _measure_budget(folders[BASELINE], summary)
        if self.recipe.fidelity.speed and self.recipe.fidelity.records:
            self._time(output)
        for name, folder in folders.items():
            self._measure(name, _defer_loading(folder))
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

    def _train_control(self, taught: TrainedStudent) -> tuple[Path, TrainSummary]:
        return train_baseline_once(
            self.recipe,
            self.job,
            taught.start,
            self._own_lessons(taught),
            taught.rows,
            taught.summary,
            taught.card,
        )

    def _own_lessons(self, taught: TrainedStudent) -> Sequence[TokenizedRecord]:
        """Return the records' own tokens as lessons, whatever the student learned from."""
        recipe = self.recipe
        if recipe.sequence is None and recipe.rationale is None:
            return taught.lessons
        return tokenize_training_records(recipe, self.split, self.lane.tokenizer, self.job)[0]

    def _time(self, output: Path) -> None:
        here = [one for one in self.lane.teachers if isinstance(one, LocalTeacher)]
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

    def _report(self, budgets: dict[str, TrainingBudget]) -> dict[str, Any]:
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
            beside["by_themselves"] = {
                name: _list_standalone_rows(side) for name, side in sides.items()
            }
        write_fidelity_report(self.job.output, report, {**found, **beside})
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
        told = {"loss": f"student, {self.lane.loss}", f"{BASELINE}/loss": "control, cross-entropy"}
        found = read_loss_curves(self.job.work / "metrics.jsonl", list(told))
        return {told[name]: points for name, points in found.items() if points}

    def _near(self) -> list[TeacherDistance]:
        names = [one.name for one in self.yardsticks]
        return [
            TeacherDistance(
                one.name if names.count(one.name) == 1 else f"{one.name} ({at + 1})",
                {name: found[at] for name, found in self.near.items()},
                one.note,
            )
            for at, one in enumerate(self.yardsticks)
        ]


def _list_standalone_rows(side: ModelFidelity) -> list[dict[str, Any]]:
    """Return what a model says of each record by itself: plain values."""
    names = ("record", "loss", "entropy", "brier", "tokens")
    return [{name: getattr(row, name) for name in names} for row in side.fidelity.rows]


def _defer_loading(folder: Path) -> Callable[[], Any]:
    return lambda: load_causal_lm(folder, dtype="float32")[0]


def _measure_budget(folder: Path, summary: TrainSummary | None) -> TrainingBudget:
    files = folder.glob(_WEIGHT_FILES) if folder.is_dir() else [folder]
    return TrainingBudget(
        summary.steps if summary else 0,
        summary.tokens if summary else 0,
        summary.positions if summary else 0,
        Checkpoint.open(folder).parameters,
        sum(file.stat().st_size for file in files),
    )


class BaselineLoss:
    """Callable that ``train`` takes: cross-entropy of the records' own tokens, summed.

    Weights of lessons are left aside: where they follow from the teacher, the control must not know
    them.
    """

    def __init__(self, rows: int, precision: str = "float32") -> None:
        """Set up for the first ``rows`` tokens of the head; ``precision`` is that of products."""
        self.rows, self.dtype = rows, matmul_dtype(precision)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a micro-batch, summed over its positions."""
        hidden = get_body(model)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1])[batch.flat]  # (N, H)

        def score(
            logits: Tensor, start: int, stop: int
        ) -> tuple[Tensor, Tensor, Mapping[str, float]]:
            labels = batch.labels[start:stop, None]
            logprobs = torch.log_softmax(logits, -1)
            gradient = logprobs.exp()
            gradient.scatter_add_(1, labels, -torch.ones_like(labels, dtype=gradient.dtype))
            return -logprobs.gather(1, labels)[:, 0], gradient, {}

        head = LMHead.of(model, self.rows)
        total, parts = compute_chunked_loss(
            picked, head, score, tiles=True, chunk_rows=CHUNK_ROWS, dtype=self.dtype
        )
        return Loss(total, parts)


def compute_baseline_batch_size(
    recipe: DistillRecipe, lessons: Sequence[TokenizedRecord], positions: int
) -> int:
    """Return the records a step with which the control learns from about so many positions.

    Args:
        recipe: Its batch size stands where the student learned from the records themselves.
        lessons: The records as tokens.
        positions: What the student learned from, over the whole run.
    """
    mean = sum(len(lesson.positions) for lesson in lessons) / len(lessons)
    steps = recipe.train.count_steps(len(lessons))
    plain = mean * steps * recipe.train.batch_size
    if abs(positions / plain - 1) < 0.5 / recipe.train.batch_size:
        return recipe.train.batch_size
    return max(1, round(positions / (mean * steps)))


def train_baseline_once(
    recipe: DistillRecipe,
    job: Job,
    start: Path,
    lessons: Sequence[TokenizedRecord],
    rows: int,
    taught: TrainSummary,
    card: Mapping[str, Any],
) -> tuple[Path, TrainSummary]:
    """Train the control unless a killed run has; return its folder and what training came to.

    Args and errors are those of ``train_baseline``.
    """
    journal = job.journal("control")
    folder = (job.output if recipe.fidelity.keep_control else job.scratch) / BASELINE
    if BASELINE not in journal or not folder.is_dir():
        summary = train_baseline(recipe, job, start, lessons, rows, taught, card, folder)
        journal.put(BASELINE, asdict(summary))
    return folder, TrainSummary(**journal[BASELINE])


def train_baseline(
    recipe: DistillRecipe,
    job: Job,
    start: Path,
    lessons: Sequence[TokenizedRecord],
    rows: int,
    taught: TrainSummary,
    card: Mapping[str, Any],
    folder: Path,
) -> TrainSummary:
    """Train the control in a phase of its own, write its checkpoint, and return what it came to.

    It is written in the same type as the student, so that both are measured after the same
    rounding.

    Args:
        recipe: Of the job.
        job: The phase is ``control``; its state survives a kill as the student's does.
        start: The checkpoint that the student started from.
        lessons: What the student learned from.
        rows: Tokens of the vocabulary that take part.
        taught: What the student's training came to.
        card: Of the student.
        folder: Where its checkpoint is written.

    Raises:
        DataError: If a loss or gradient is not finite.
        Cancelled: If the user stopped it; ``--resume`` goes on.
    """
    model, _ = load_causal_lm(start, dtype="float32")
    device = next(model.parameters()).device
    batch_size = compute_baseline_batch_size(recipe, lessons, taught.positions)
    settings = recipe.train.model_copy(update={"steps": taught.steps, "batch_size": batch_size})
    if recipe.train.lora:
        model = add_lora(model, recipe.train.lora, recipe.seed)
    source = make_record_source(
        recipe,
        lessons,
        lessons,
        lambda chosen: make_batch(chosen, None, device),
        [lesson.key for lesson in lessons],
        batch_size=batch_size,
    )
    objective = BaselineLoss(rows, choose_precision(recipe.train.precision, device))
    summary = train(
        model,
        source,
        objective,
        settings,
        job,
        seed=recipe.seed,
        name=BASELINE,
        ranks=ProcessGroup(alone=True),
    )
    said = {
        **card,
        "title": f"{card['title']}: the control",
        "body": "The same student, trained by Stillroom on the same records for as long, by "
        "cross-entropy alone. It is there to be compared with.",
        "tags": ["control"],
    }
    write_student(model, folder, start, recipe.out, said)
    return summary
