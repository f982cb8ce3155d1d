"""Evaluation of a student before and after training, beside its teacher and a baseline.

The order keeps few models in memory: the initial student and the teacher are measured before
training; after it the baseline is trained alone, then each model is loaded, measured next to the
teacher and unloaded. Every part is journaled, so that a resumed job repeats none.

The baseline has an equal budget: the same initial weights, records, order, optimizer,
schedule and seed, as many optimizer steps and as many loss tokens. If the student trains on other
text than the records (its own rollouts, a teacher's answers), the baseline still reads only the
records; its batch size is then chosen so that the numbers of tokens match, and both counts are
reported. The teacher's forward passes are not part of the budget. The difference between student
and baseline measures the value of the teacher's distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

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
from stillroom.distill.evaluation.metrics import (
    BASELINE,
    TEACHER,
    ModelFidelity,
    RecordMetrics,
    summarize_models,
)
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
from stillroom.distill.losses.divergence import compute_cross_entropy
from stillroom.distill.losses.lm_head import (
    CHUNK_ROWS,
    LMHead,
    compute_chunked_loss,
    compute_hidden,
)
from stillroom.distill.output import write_student
from stillroom.distill.preflight.audits import check_teacher_advantage
from stillroom.distill.recipes import TrainingRecipe
from stillroom.distill.teachers.endpoint import EndpointTeacher, TextOnlyTeacher
from stillroom.distill.teachers.local import LocalTeacher
from stillroom.jobs import Job
from stillroom.jobs.preflight import PreflightFinding
from stillroom.models import load_model_only
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
]

_WEIGHT_FILES = "*.safetensors"


@dataclass(frozen=True, slots=True)
class TrainedStudent:
    """Result of the student's training."""

    start: Path
    tokenized: Sequence[TokenizedRecord]
    rows: int
    summary: TrainSummary
    card: dict[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class FidelityEvaluator:
    """Evaluator of all models of one job, and writer of the fidelity report.

    Args:
        recipe: Settings of the evaluation and of the baseline's training.
        job: Progress, journals and output.
        split: Held-out records, and training records of the baseline.
        tokenizer: Tokenizer of the student.
        teachers: Teachers, in order.
        loss_name: Name of the student's loss, for the curve.
        is_compared: Whether models are compared with a single local teacher by full distributions.
        references: Stored references of each teacher; empty if the teacher is compared by full
            distributions or was not queried.
        report: Returns the part of fidelity.json that depends on the kind of teacher, given the
            metrics of each model by reference.
    """

    recipe: TrainingRecipe
    job: Job
    split: RecordSplit
    tokenizer: Any
    teachers: Sequence[LocalTeacher | EndpointTeacher | TextOnlyTeacher]
    loss_name: str
    is_compared: bool = False
    references: Sequence[TeacherReference] = ()
    report: Callable[[Mapping[str, Sequence[RecordMetrics[Any]]]], Mapping[str, Any]] = (
        lambda metrics: {}
    )
    fidelities: dict[str, ModelFidelity] = field(default_factory=dict)
    distances: dict[str, list[RecordMetrics[Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        records, teacher = self.split.held_out, self._measured_teacher
        context = self.recipe.find_context()
        compared_teacher = teacher if self.is_compared else None
        self._evaluator = HeldOutEvaluator(
            self.recipe, self.job, records, self.tokenizer, compared_teacher, context
        )
        self._teacher_evaluator = self._evaluator
        if (
            teacher is not None and compared_teacher is None
        ):  # it reads the records in its own tokenization
            self._teacher_evaluator = HeldOutEvaluator(
                self.recipe, self.job, records, teacher.tokenizer, context=context
            )

    @property
    def _measured_teacher(self) -> LocalTeacher | None:
        """The teacher, if it is a single local one, which is then evaluated like the student."""
        (first, *others) = self.teachers
        return first if isinstance(first, LocalTeacher) and not others else None

    def evaluate_start(self, student: Any) -> PreflightFinding | None:
        """Measure the teacher and the untrained student.

        Returns:
            Whether the teacher is better on these records; None if that is not measured.
        """
        teacher = self._measured_teacher
        if teacher is not None:
            side = self._teacher_evaluator.measure(TEACHER, lambda: teacher.model)
            self.fidelities[TEACHER] = side
        self._measure(INITIAL, lambda: student, writes=False)
        if teacher is None or not self.is_compared or not self.recipe.fidelity.records:
            return None
        sides = self.fidelities[TEACHER].fidelity, self.fidelities[INITIAL].fidelity
        return check_teacher_advantage(*sides, seed=self.recipe.seed)

    def evaluate_student(self, trained: TrainedStudent) -> dict[str, Any]:
        """Measure the student in the job's output, train and measure its baseline, and report.

        The caller has released the student in memory.

        Returns:
            Details for artifact.json.

        Raises:
            Cancelled: If cancellation was requested; ``--resume`` continues.
        """
        output = self.job.output
        budgets = {FINAL: _measure_budget(output, trained.summary)}
        self._unload()
        teacher = self._measured_teacher
        if teacher is not None:
            budgets[TEACHER] = _measure_budget(teacher.checkpoint.folder, None)
        folders = {FINAL: output}
        if self.recipe.fidelity.baseline and self.split.held_out and self.recipe.fidelity.records:
            folders[BASELINE], summary = self._train_baseline(trained)
            budgets[BASELINE] = _measure_budget(folders[BASELINE], summary)
        if self.recipe.fidelity.speed and self.recipe.fidelity.records:
            self._measure_speed(output)
        for name, folder in folders.items():
            self._measure(name, partial(load_model_only, folder, dtype="float32"))
        self._unload()
        return self._report(budgets)

    def _unload(self) -> None:
        for teacher in self.teachers:
            teacher.unload()

    def _measure(self, name: str, load: Callable[[], Any], *, writes: bool = True) -> None:
        """Measure one model by itself, or next to its teacher, and by every reference; once."""
        load = cache(load)
        self.fidelities[name] = self._evaluator.measure(name, load, writes=writes)
        journal, key = self.job.journal("fidelity"), f"{name}, near"
        if key not in journal and self.references:
            with self.job.phase(f"nearness, {name}", len(self.references), "teachers") as progress:
                measured = []
                for reference in self.references:
                    self.job.check_cancelled()
                    measured.append(reference.measure(load()).to_json())
                    progress.advance()
            journal.put(key, measured)
        rows = journal.get(key, [])
        self.distances[name] = [
            reference.figures.from_json(values)
            for reference, values in zip(self.references, rows, strict=True)
        ]

    def _train_baseline(self, trained: TrainedStudent) -> tuple[Path, TrainSummary]:
        """Train the baseline unless that is done; return its folder and training summary.

        It is written in the student's dtype, so that both are measured after the same rounding.
        """
        recipe, job, records = self.recipe, self.job, self._tokenize_records(trained)
        journal = job.journal(BASELINE)
        folder = (job.output if recipe.fidelity.keep_baseline else job.scratch) / BASELINE
        if BASELINE in journal and folder.is_dir():
            return folder, TrainSummary(**journal[BASELINE])
        model = load_model_only(trained.start, dtype="float32")
        device = next(model.parameters()).device
        batch_size = compute_baseline_batch_size(recipe, records, trained.summary.positions)
        if recipe.train.lora:
            model = add_lora(model, recipe.train.lora, recipe.seed)
        summary = train(
            model,
            make_record_source(
                recipe,
                records,
                records,
                lambda batch: make_batch(batch, None, device),
                [record.key for record in records],
                batch_size=batch_size,
            ),
            BaselineLoss(trained.rows, choose_precision(recipe.train.precision, device)),
            recipe.train.model_copy(
                update={"steps": trained.summary.steps, "batch_size": batch_size}
            ),
            job,
            seed=recipe.seed,
            name=BASELINE,
            ranks=ProcessGroup(alone=True),
        )
        card = {
            **trained.card,
            "title": f"{trained.card['title']}: the baseline",
            "body": "The same student, trained by Stillroom on the same records for as long, by "
            "cross-entropy alone. It is there to be compared with.",
            "tags": ["baseline"],
        }
        write_student(model, folder, trained.start, recipe.output, card)
        journal.put(BASELINE, asdict(summary))
        return folder, TrainSummary(**journal[BASELINE])

    def _tokenize_records(self, trained: TrainedStudent) -> Sequence[TokenizedRecord]:
        """Return the records without generated text, tokenized for the baseline."""
        if self.recipe.sequence is None and self.recipe.find_rationale() is None:
            return trained.tokenized
        limit, with_prompt = self.recipe.max_tokens, self.recipe.include_prompt
        return tokenize_training_records(
            self.split, self.tokenizer, self.job, max_tokens=limit, include_prompt=with_prompt
        )[0]

    def _measure_speed(self, output: Path) -> None:
        local_teachers = [teacher for teacher in self.teachers if isinstance(teacher, LocalTeacher)]
        names = {
            "teacher"
            if len(local_teachers) == 1
            else f"teacher {index + 1}": teacher.checkpoint.folder
            for index, teacher in enumerate(local_teachers)
        }
        speeds = measure_timings(self.job, {**names, "student": output})
        report = write_timings(self.job, speeds, seed=self.recipe.seed)
        student_time, *teacher_times = (
            f"{report.metrics[f'{name}/decode_ms'].value:.1f} ms" for name in ("student", *names)
        )
        comparison = f" (the teacher's {', '.join(teacher_times)})" if teacher_times else ""
        self.job.say(f"decoding one token takes {student_time}{comparison}; see {TIMINGS}.html")

    def _report(self, budgets: dict[str, TrainingBudget]) -> dict[str, Any]:
        """Write the report, log its summary, and return the details for artifact.json."""
        sides, seed, passed_over = self.fidelities, self.recipe.seed, self._evaluator.passed_over
        names = " and ".join(teacher.name for teacher in self.teachers)
        # The training losses of student and baseline by step, under display names.
        labels = {
            "loss": f"student, {self.loss_name}",
            f"{BASELINE}/loss": "baseline, cross-entropy",
        }
        curves = read_loss_curves(self.job.work / "metrics.jsonl", list(labels))
        report = build_report(
            sides,
            budgets,
            title=f"{names} and {'its' if len(self.teachers) == 1 else 'their'} student",
            seed=seed,
            passed_over=passed_over,
            near=None if self.is_compared else self._list_distances(),
            losses={labels[name]: points for name, points in curves.items() if points},
        )
        compared = {name: side.fidelity for name, side in sides.items() if name != TEACHER}
        details: dict[str, Any] = {
            **(
                summarize_models(compared, seed)
                if self.is_compared
                else self.report(self.distances)
            ),
            "held_out": len(self.split.held_out),
            "measured": len(sides[INITIAL].fidelity.rows),
        }
        extra: dict[str, Any] = {
            "budget": {name: asdict(budget) for name, budget in budgets.items()},
            "passed_over": passed_over,
            "answers": {
                name: [asdict(answer) for answer in side.answers]
                for name, side in sides.items()
                if side.answers
            },
        }
        if not self.is_compared:
            extra["by_themselves"] = {
                name: _list_standalone_rows(side) for name, side in sides.items()
            }
        write_fidelity_report(self.job.output, report, {**details, **extra})
        self.job.say(report.summary)
        return details

    def _list_distances(self) -> list[TeacherDistance]:
        names = [reference.name for reference in self.references]
        return [
            TeacherDistance(
                reference.name
                if names.count(reference.name) == 1
                else f"{reference.name} ({index + 1})",
                {name: measured[index] for name, measured in self.distances.items()},
                reference.note,
            )
            for index, reference in enumerate(self.references)
        ]


def _list_standalone_rows(side: ModelFidelity) -> list[dict[str, Any]]:
    """Return the standalone metrics of each record as JSON values."""
    names = ("record", "loss", "entropy", "brier", "tokens")
    return [{name: getattr(row, name) for name in names} for row in side.fidelity.rows]


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
    """Loss function of the baseline: summed cross-entropy of the records' tokens.

    Ignores the weights of records, which may be derived from the teacher.
    """

    def __init__(self, rows: int, precision: str = "float32") -> None:
        """Use the first ``rows`` tokens of the head; ``precision`` is that of matrix products."""
        self.rows, self.dtype = rows, matmul_dtype(precision)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a micro-batch, summed over its positions."""
        picked = compute_hidden(model, batch.input_ids, batch.flat)

        def score(
            logits: Tensor, start: int, stop: int
        ) -> tuple[Tensor, Tensor, Mapping[str, float]]:
            loss, gradient, _ = compute_cross_entropy(1.0, logits, batch.labels[start:stop])
            return loss, gradient, {}

        head = LMHead.of(model, self.rows)
        total, parts = compute_chunked_loss(
            picked, head, score, tiles=True, chunk_rows=CHUNK_ROWS, dtype=self.dtype
        )
        return Loss(total, parts)


def compute_baseline_batch_size(
    recipe: TrainingRecipe, records: Sequence[TokenizedRecord], positions: int
) -> int:
    """Return the batch size that gives the baseline about as many loss positions.

    Args:
        recipe: Its batch size is returned if the student trained on the records themselves.
        records: Tokenized records.
        positions: Loss positions of the student over the whole run.
    """
    mean = sum(len(record.positions) for record in records) / len(records)
    steps = recipe.train.count_steps(len(records))
    plain = mean * steps * recipe.train.batch_size
    if abs(positions / plain - 1) < 0.5 / recipe.train.batch_size:
        return recipe.train.batch_size
    return max(1, round(positions / (mean * steps)))
