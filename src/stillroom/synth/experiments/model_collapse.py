"""Model collapse study: students trained on replaced or accumulated synthetic data.

Generation 0 trains on human records. Every later one trains on a mixture of those and of the output
of earlier students, by one or several rules. Measured are each student's loss on held-out human
records, and the diversity of its training data relative to them. Students of one seed start from
the same weights. They take equally many optimizer steps, so that only the data differ, or (as in
the papers) equally many epochs, so that more data mean more steps.

A unit is one student: trained, evaluated, sampled from, and then journaled, so that a resumed job
continues with the next one and produces the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.evaluate import Metric
from stillroom.evaluate.metrics.diversity import Vectors
from stillroom.jobs import Estimate, Job, Reporter
from stillroom.provenance import Artifact, make_parent
from stillroom.records import Link, Record, combine_origins, read_records, write_records
from stillroom.synth.experiments.diversity_monitor import (
    DiversityReference,
    compute_word_budget,
    find_warnings,
)
from stillroom.synth.experiments.model_collapse_report import (
    CollapseResults,
    CollapseStudy,
    StudentRun,
)
from stillroom.synth.experiments.students import (
    FLOPS_PER_SECOND,
    StudentTrainer,
    count_student_parameters,
    describe_origins,
    is_plain,
    read_human_records,
    sample_records,
    split_human_records,
)
from stillroom.synth.selection import MIX_RULES, MixRule, mix_generation
from stillroom.synth.types import derive_seed
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.evaluate import Report
    from stillroom.models import Embedder

__all__ = [
    "estimate_collapse_study",
    "run_collapse_study",
]


_MOST_WORDS = 6000
_LINK = "synth.generations"


def run_collapse_study(
    plan: CollapseStudy,
    out: Path,
    *,
    embedder: Embedder | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, Report, CollapseResults]:
    """Train the students of all generations and report how they degrade.

    Writes ``report.json`` and ``report.html``, and under ``written/`` the output of every student.

    Args:
        plan: The experiment.
        out: Output folder of the report.
        embedder: Default: the one the plan names; without one there is no ``vendi``, ``spread`` or
            ``coverage``.
        resume: Resume a killed run.
        overwrite: Replace the output of an earlier job at ``out``.
        reporter: Progress display; default none.

    Raises:
        DataError: If a setting is out of range, or there are too few records.
        Cancelled: If the user cancels; finished students are kept.
    """
    _check(plan)
    job = Job.start(
        out, plan.to_text(), seed=plan.seed, resume=resume, overwrite=overwrite, reporter=reporter
    )
    try:
        with job.interruptible(), limit_threads(plan.student.train.threads):
            return _Experiment(plan, job, embedder).run()
    finally:
        job.close()


def estimate_collapse_study(plan: CollapseStudy) -> Estimate:
    """Estimate memory, disk and time from the size of the student."""
    parameters = count_student_parameters(plan.student)
    settings = plan.student
    steps = settings.train.count_steps(plan.records)
    if settings.train.steps is None and "accumulate" in plan.rules:
        # relative to the first generation
        growth = sum(range(2, plan.generations + 2)) / plan.generations
        steps = round(steps * (1 + (growth - 1) / len(plan.rules)))
    trained_tokens = steps * settings.train.batch_size * settings.max_tokens
    # Training takes six multiply-adds per parameter and token; generation is slower than its two.
    generated_tokens = plan.records * settings.max_tokens
    flops = parameters * (6.0 * trained_tokens + 20.0 * generated_tokens)
    student_seconds = flops / FLOPS_PER_SECOND
    embedded = 0.02 * plan.held_out * plan.units if plan.embedder else 0.0
    return Estimate(
        memory_bytes=int(parameters * 20 + 800_000_000),
        disk_bytes=int(plan.units * plan.records * settings.max_tokens * 8 + parameters * 16),
        seconds=plan.units * (student_seconds + 3.0) + embedded,
        memory_knob="use a smaller student",
        disk_knob="use fewer records or generations",
        basis=f"{plan.units} students of {parameters / 1e6:.2f} M parameters, {steps} steps "
        "each in the mean",
    )


class _Experiment:
    """One run of the experiment."""

    def __init__(self, plan: CollapseStudy, job: Job, embedder: Embedder | None) -> None:
        self.plan, self.job = plan, job
        records = read_human_records(plan.path)
        side = split_human_records(
            records, plan.held_out / (plan.held_out + plan.records), plan.seed
        )
        texts = ["\n".join(message.content for message in record.messages) for record in side.train]
        self.students = StudentTrainer(plan.student, texts, job)
        self.human = self._pieces(side.train, plan.records)
        self.held_out = self._pieces(side.held_out, plan.held_out)
        self.note = describe_origins([*side.train, *side.held_out])
        self.journal = job.journal("students")
        self.outcome = CollapseResults(plan)
        self._embedder = embedder
        if embedder is None and plan.embedder:
            from stillroom.models import open_embedder

            self._embedder = open_embedder(plan.embedder, say=job.say)

    def run(self) -> tuple[Artifact, Report, CollapseResults]:
        """Train and evaluate the students, and write the report."""
        from stillroom.synth.experiments.model_collapse_report import report_collapse

        plan, job, outcome = self.plan, self.job, self.outcome
        if self.note:
            job.say(self.note)
        encoded = self.students.encode(self.held_out)
        reference = self._measure_reference()
        units = list(_units(plan))
        done = sum(unit.key in self.journal for unit in units)
        with job.phase("students", len(units), "students", done=done) as progress:
            for unit in units:
                data = self._data(unit)
                if unit.key not in self.journal:
                    job.check_cancelled()
                    self.journal.put(unit.key, self._run_unit(unit, data, encoded, reference))
                    self.students.forget(unit.key)
                    progress.advance()
                self._collect(unit)
        outcome.said = {
            "parameters": self.students.parameters,
            "records": len(self.human),
            "held_out": len(self.held_out),
            "budget_words": reference.budget,
            "origins": self.note,
        }
        report = report_collapse(outcome)
        report.write(job.output)
        warned = {
            unit.key: [asdict(item) for item in alarms] for unit, alarms in outcome.warned.items()
        }
        artifact = job.finish(
            "report",
            parents=[make_parent("records", plan.path, job.out)],
            origin=combine_origins(item.origin for item in self.human).to_json(),
            details={**outcome.said, "warnings": warned, **report.to_json()},
        )
        return artifact, report, outcome

    def _pieces(self, records: Sequence[Record], count: int) -> list[Record]:
        """Return up to ``count`` records; plain texts are cut into pieces that fit a student."""
        shuffled = sample_records(records, len(records), self.plan.seed)
        pieces: list[Record] = []
        for record in shuffled:
            if len(pieces) >= count:
                break
            if is_plain(record):
                pieces += self.students.cut(record)
            elif self.students.fits(record):
                pieces.append(record)
        if not pieces:
            raise DataError(
                f"no record fits into {self.plan.student.max_tokens} tokens",
                code="synth.too-long",
                where=str(self.plan.path),
                expected="conversations no longer than a student's token limit",
                next="raise --max-tokens",
            )
        return pieces[:count]

    def _measure_reference(self) -> DiversityReference:
        """Return the reference for all data: the held-out human records."""
        texts = [_text(record) for record in self.held_out]
        budget = min(
            compute_word_budget([texts, [_text(record) for record in self.human]]), _MOST_WORDS
        )
        vectors = self._embed(self.held_out)
        return DiversityReference(texts, budget=budget, vectors=vectors, seed=self.plan.seed)

    def _data(self, unit: StudentRun) -> list[Record]:
        """Return the training data of a student."""
        if unit.generation == 0:
            return self.human
        written = [
            list(read_records(self._file(self._writer(unit, number))))
            for number in range(unit.generation)
        ]
        rule: MixRule = next(rule for rule in MIX_RULES if rule == unit.rule)
        seed = derive_seed(self.plan.seed, unit.seed)
        share = self.plan.human_share
        return mix_generation(rule, self.human, written, human_share=share, seed=seed)

    def _writer(self, unit: StudentRun, number: int) -> StudentRun:
        return StudentRun(unit.seed, unit.rule if number else "", number)

    def _file(self, unit: StudentRun) -> Path:
        folder = self.job.output / "written"
        folder.mkdir(exist_ok=True)
        return folder / f"{unit.key}.jsonl"

    def _run_unit(
        self,
        unit: StudentRun,
        data: Sequence[Record],
        held_out: Sequence[Any],
        reference: DiversityReference,
    ) -> dict[str, Any]:
        """Train a student, evaluate it and its data, sample from it; return the journal entry."""
        plan = self.plan
        sample = data[: len(held_out)]  # same size as the reference: the metrics depend on size
        figures = reference.measure(
            [_text(record) for record in sample],
            self._embed(sample),
            learned=[_text(record) for record in data],
        )
        seed = derive_seed(plan.seed, unit.seed)
        model = self.students.train(self.students.encode(data), seed, unit.key)
        losses = self.students.losses(model, held_out)
        if unit.generation < plan.generations:
            draws = derive_seed(seed, unit.rule, unit.generation, "write")
            link = Link(f"{_LINK}.{unit.rule or 'human'}", self.students.fingerprint)
            written = self.students.write(model, self.human, draws, link)
            write_records(self._file(unit), written)
        return {
            "losses": [nats for nats, _ in losses],
            "tokens": [count for _, count in losses],
            "figures": [metric.to_json() for metric in figures.values()],
            "records": len(data),
        }

    def _collect(self, unit: StudentRun) -> None:
        result = self.journal[unit.key]
        outcome = self.outcome
        outcome.tokens = result["tokens"]
        outcome.losses[unit] = result["losses"]
        outcome.sizes[unit] = result["records"]
        figures = {row["name"]: Metric.from_json(row) for row in result["figures"]}
        outcome.figures[unit] = figures
        if unit.generation:
            base = outcome.figures[StudentRun(unit.seed, "", 0)]
            outcome.warned[unit] = find_warnings(unit.key, figures, base, self.plan.tolerance)

    def _embed(self, records: Sequence[Record]) -> Vectors | None:
        """Return embeddings of records, (N, D), or None without an embedder."""
        if self._embedder is None:
            return None
        texts = [_text(record) for record in records]
        filled = [
            text if text.strip() else "-" for text in texts
        ]  # a student may generate empty text
        return self._embedder.embed(filled, kind="passage")


def _units(plan: CollapseStudy) -> Iterator[StudentRun]:
    """Yield all students; those that a student's data come from precede it."""
    for seed in range(plan.seeds):
        yield StudentRun(seed, "", 0)
        for rule in plan.rules:
            for generation in range(1, plan.generations + 1):
                yield StudentRun(seed, rule, generation)


def _text(record: Record) -> str:
    """Return the text to measure: a plain text, or the last assistant message."""
    return record.messages[-1].content


def _check(plan: CollapseStudy) -> None:
    problems = (
        (plan.generations < 1, f"{plan.generations} generations", "1 or more"),
        (plan.seeds < 1, f"{plan.seeds} seeds", "1 or more; 3 or more for an interval"),
        (not plan.rules, "no rule", f"some of {', '.join(MIX_RULES)}"),
        (not 0 <= plan.human_share < 1, f"a human share of {plan.human_share}", "0 to below 1"),
        (min(plan.records, plan.held_out) < 8, "too few records", "8 or more on each side"),
    )
    for is_wrong, problem, expected in problems:
        if is_wrong:
            raise DataError(
                problem,
                code="synth.generations",
                expected=expected,
                next="change that option; see stillroom synth generations --help",
            )
