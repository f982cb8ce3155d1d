"""Model collapse study: students trained on replaced or accumulated synthetic data.

Generation 0 learns from human records. Every later one learns from a mixture of them and of what
the students before wrote, by one or several rules, and each is measured: its loss on human records
that nobody learned from, and how varied what it learned from is beside them. Every student of a
seed starts from the same weights. They take as many optimizer steps each, so that only the data
differ, or (as in the papers) read all they learn from as often, so that more data are more steps.

A unit is one student: it is trained, measured and asked to write, and then journaled, so that a
killed job goes on with the next one and ends with the same bytes.
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
_FLOPS = 12e9
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
    """Train the students of all generations and say what became of them.

    Leaves ``report.json`` and ``report.html``, and under ``written/`` what every student wrote.

    Args:
        plan: The experiment.
        out: The folder of the report.
        embedder: By default what the plan names; without one there is no ``vendi``, ``spread`` and
            ``coverage``.
        resume: Go on where a killed run stopped.
        overwrite: Replace what an earlier job left at ``out``.
        reporter: What draws progress; default nothing.

    Raises:
        DataError: If a setting is out of range, or there are too few records.
        Cancelled: If the user asked for it; finished students are kept.
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
    """Return what the experiment will need, by the size of its student."""
    parameters = count_student_parameters(plan.student)
    settings = plan.student
    steps = settings.train.count_steps(plan.records)
    if settings.train.steps is None and "accumulate" in plan.rules:
        grown = sum(range(2, plan.generations + 2)) / plan.generations  # times the first one's
        steps = round(steps * (1 + (grown - 1) / len(plan.rules)))
    learned = steps * settings.train.batch_size * settings.max_tokens
    # Six products a parameter to learn a token; writing one is slower than its two would say.
    each = parameters * (6.0 * learned + 20.0 * plan.records * settings.max_tokens) / _FLOPS
    embedded = 0.02 * plan.held_out * plan.units if plan.embedder else 0.0
    return Estimate(
        memory_bytes=int(parameters * 20 + 800_000_000),
        disk_bytes=int(plan.units * plan.records * settings.max_tokens * 8 + parameters * 16),
        seconds=plan.units * (each + 3.0) + embedded,
        memory_knob="take a smaller student",
        disk_knob="take fewer records or generations",
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
        texts = ["\n".join(one.content for one in record.messages) for record in side.train]
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
        """Train, measure, report."""
        from stillroom.synth.experiments.model_collapse_report import report_collapse

        plan, job, outcome = self.plan, self.job, self.outcome
        if self.note:
            job.say(self.note)
        encoded = self.students.encode(self.held_out)
        stick = self._yardstick()
        units = list(_units(plan))
        done = sum(unit.key in self.journal for unit in units)
        with job.phase("students", len(units), "students", done=done) as progress:
            for unit in units:
                data = self._data(unit)
                if unit.key not in self.journal:
                    job.check_cancelled()
                    self.journal.put(unit.key, self._run_unit(unit, data, encoded, stick))
                    self.students.forget(unit.key)
                    progress.advance()
                self._collect(unit)
        outcome.said = {
            "parameters": self.students.parameters,
            "records": len(self.human),
            "held_out": len(self.held_out),
            "budget_words": stick.budget,
            "origins": self.note,
        }
        report = report_collapse(outcome)
        report.write(job.output)
        warned = {
            unit.key: [asdict(one) for one in found] for unit, found in outcome.warned.items()
        }
        artifact = job.finish(
            "report",
            parents=[make_parent("records", plan.path, job.out)],
            origin=combine_origins(one.origin for one in self.human).to_json(),
            details={**outcome.said, "warnings": warned, **report.to_json()},
        )
        return artifact, report, outcome

    def _pieces(self, records: Sequence[Record], count: int) -> list[Record]:
        """Return so many records, plain texts in pieces that a student can read."""
        drawn = sample_records(records, len(records), self.plan.seed)
        found: list[Record] = []
        for record in drawn:
            if len(found) >= count:
                break
            if is_plain(record):
                found += self.students.cut(record)
            elif self.students.fits(record):
                found.append(record)
        if not found:
            raise DataError(
                f"no record fits into {self.plan.student.max_tokens} tokens",
                code="synth.too-long",
                where=str(self.plan.path),
                expected="conversations no longer than a student reads",
                next="raise --max-tokens",
            )
        return found[:count]

    def _yardstick(self) -> DiversityReference:
        """Return what all data are measured by: the human records that nobody learns from."""
        texts = [_text(record) for record in self.held_out]
        budget = min(compute_word_budget([texts, [_text(one) for one in self.human]]), _MOST_WORDS)
        vectors = self._embed(self.held_out)
        return DiversityReference(texts, budget=budget, vectors=vectors, seed=self.plan.seed)

    def _data(self, unit: StudentRun) -> list[Record]:
        """Return what a student learns from."""
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
        stick: DiversityReference,
    ) -> dict[str, Any]:
        """Train a student, measure it and its data, let it write; return what is journaled."""
        plan = self.plan
        drawn = data[: len(held_out)]  # as many as the reference has: figures depend on size
        figures = stick.measure(
            [_text(one) for one in drawn],
            self._embed(drawn),
            learned=[_text(one) for one in data],
        )
        seed = derive_seed(plan.seed, unit.seed)
        model = self.students.teach(self.students.encode(data), seed, unit.key)
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
        told = self.journal[unit.key]
        outcome = self.outcome
        outcome.tokens = told["tokens"]
        outcome.losses[unit] = told["losses"]
        outcome.sizes[unit] = told["records"]
        figures = {row["name"]: Metric.from_json(row) for row in told["figures"]}
        outcome.figures[unit] = figures
        if unit.generation:
            base = outcome.figures[StudentRun(unit.seed, "", 0)]
            outcome.warned[unit] = find_warnings(unit.key, figures, base, self.plan.tolerance)

    def _embed(self, records: Sequence[Record]) -> Vectors | None:
        """Return vectors of records, (N, D), or nothing where there is no embedder."""
        if self._embedder is None:
            return None
        texts = [_text(record) for record in records]
        shown = [text if text.strip() else "-" for text in texts]  # a student may write nothing
        return self._embedder.embed(shown, kind="passage")


def _units(plan: CollapseStudy) -> Iterator[StudentRun]:
    """Yield all students so that those a student's data come from are before it."""
    for seed in range(plan.seeds):
        yield StudentRun(seed, "", 0)
        for rule in plan.rules:
            for generation in range(1, plan.generations + 1):
                yield StudentRun(seed, rule, generation)


def _text(record: Record) -> str:
    """Return what is measured: a plain text, or what the assistant says last."""
    return record.messages[-1].content


def _check(plan: CollapseStudy) -> None:
    problems = (
        (plan.generations < 1, f"{plan.generations} generations", "1 or more"),
        (plan.seeds < 1, f"{plan.seeds} seeds", "1 or more; 3 or more for an interval"),
        (not plan.rules, "no rule", f"some of {', '.join(MIX_RULES)}"),
        (not 0 <= plan.human_share < 1, f"a human share of {plan.human_share}", "0 to below 1"),
        (min(plan.records, plan.held_out) < 8, "too few records", "8 or more on each side"),
    )
    for is_wrong, what, expected in problems:
        if is_wrong:
            raise DataError(
                what,
                code="synth.generations",
                expected=expected,
                next="change that option: stillroom synth generations --help",
            )
