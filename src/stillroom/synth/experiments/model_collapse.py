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
from stillroom.jobs import Job
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact, make_parent
from stillroom.records import Link, Record, combine_origins, read_records, write_records
from stillroom.synth.experiments.diversity_monitor import (
    DiversityReference,
    compute_word_budget,
    find_warnings,
)
from stillroom.synth.experiments.human_records import (
    describe_origins,
    is_plain,
    read_human_records,
    sample_records,
    split_human_records,
)
from stillroom.synth.experiments.model_collapse_report import (
    CollapseResults,
    StudentRun,
    report_collapse,
)
from stillroom.synth.experiments.students import StudentTrainer
from stillroom.synth.selection import MIX_RULES, MixRule, mix_generation
from stillroom.synth.types import derive_seed
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.evaluate import Report
    from stillroom.models import Embedder
    from stillroom.synth.jobs.collapse import CollapseRecipe

__all__ = ["run_collapse_study"]
_MOST_WORDS = 6000
_LINK = "synth.generations"


def run_collapse_study(
    recipe: CollapseRecipe, job: Job, embedder: Embedder | None = None
) -> tuple[Artifact, Report, CollapseResults]:
    """Train the students of all generations and report how they degrade.

    Writes ``report.json`` and ``report.html``, and under ``written/`` the output of every student.

    Args:
        recipe: The study.
        job: Started job.
        embedder: Default: the one the recipe names; without one there is no ``vendi``, ``spread``
            or ``coverage``.

    Raises:
        DataError: If there are too few records, or none fits into a student.
        Cancelled: If the user cancels; finished students are kept.
    """
    with limit_threads(recipe.student.train.threads):
        return _Experiment(recipe, job, embedder).run()


class _Experiment:
    """One run of the experiment."""

    def __init__(self, recipe: CollapseRecipe, job: Job, embedder: Embedder | None) -> None:
        self.recipe, self.job = recipe, job
        self._path = resolve_local(recipe.human)
        records = read_human_records(self._path)
        side = split_human_records(
            records, recipe.num_held_out / (recipe.num_held_out + recipe.num_records), recipe.seed
        )
        texts = ["\n".join(message.content for message in record.messages) for record in side.train]
        self.students = StudentTrainer(recipe.student, texts, job)
        self.human = self._pieces(side.train, recipe.num_records)
        self.held_out = self._pieces(side.held_out, recipe.num_held_out)
        self.note = describe_origins([*side.train, *side.held_out])
        self.journal = job.journal("students")
        self.outcome = CollapseResults(recipe)
        self._embedder = embedder
        if embedder is None and recipe.embedder:
            from stillroom.models import open_embedder

            self._embedder = open_embedder(recipe.embedder, say=job.say)

    def run(self) -> tuple[Artifact, Report, CollapseResults]:
        """Train and evaluate the students, and write the report."""
        recipe, job, outcome = self.recipe, self.job, self.outcome
        if self.note:
            job.say(self.note)
        encoded = self.students.encode(self.held_out)
        reference = self._measure_reference()
        units = list(_units(recipe))
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
            parents=[make_parent("records", self._path, job.out)],
            origin=combine_origins(item.origin for item in self.human).to_json(),
            details={**outcome.said, "warnings": warned, **report.to_json()},
        )
        return artifact, report, outcome

    def _pieces(self, records: Sequence[Record], count: int) -> list[Record]:
        """Return up to ``count`` records; plain texts are cut into pieces that fit a student."""
        shuffled = sample_records(records, len(records), self.recipe.seed)
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
                f"no record fits into {self.recipe.student.max_tokens} tokens",
                code="synth.too-long",
                where=str(self._path),
                expected="conversations no longer than a student's token limit",
                next="raise student.max_tokens",
            )
        return pieces[:count]

    def _measure_reference(self) -> DiversityReference:
        """Return the reference for all data: the held-out human records."""
        texts = [_text(record) for record in self.held_out]
        budget = min(
            compute_word_budget([texts, [_text(record) for record in self.human]]), _MOST_WORDS
        )
        vectors = self._embed(self.held_out)
        return DiversityReference(texts, budget=budget, vectors=vectors, seed=self.recipe.seed)

    def _data(self, unit: StudentRun) -> list[Record]:
        """Return the training data of a student."""
        if unit.generation == 0:
            return self.human
        written = [
            list(read_records(self._file(self._writer(unit, number))))
            for number in range(unit.generation)
        ]
        rule: MixRule = next(rule for rule in MIX_RULES if rule == unit.rule)
        seed = derive_seed(self.recipe.seed, unit.seed)
        share = self.recipe.human_share
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
        recipe = self.recipe
        sample = data[: len(held_out)]  # same size as the reference: the metrics depend on size
        figures = reference.measure(
            [_text(record) for record in sample],
            self._embed(sample),
            learned=[_text(record) for record in data],
        )
        seed = derive_seed(recipe.seed, unit.seed)
        model = self.students.train(self.students.encode(data), seed, unit.key)
        losses = self.students.losses(model, held_out)
        if unit.generation < recipe.generations:
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
            outcome.warned[unit] = find_warnings(unit.key, figures, base, self.recipe.tolerance)

    def _embed(self, records: Sequence[Record]) -> Vectors | None:
        """Return embeddings of records, (N, D), or None without an embedder."""
        if self._embedder is None:
            return None
        texts = [_text(record) for record in records]
        filled = [
            text if text.strip() else "-" for text in texts
        ]  # a student may generate empty text
        return self._embedder.embed(filled, kind="passage")


def _units(recipe: CollapseRecipe) -> Iterator[StudentRun]:
    """Yield all students; those that a student's data come from precede it."""
    for seed in range(recipe.num_seeds):
        yield StudentRun(seed, "", 0)
        for rule in recipe.rules:
            for generation in range(1, recipe.generations + 1):
                yield StudentRun(seed, rule, generation)


def _text(record: Record) -> str:
    """Return the text to measure: a plain text, or the last assistant message."""
    return record.messages[-1].content
