"""Data valuation: students trained on ablations, held-out loss and a leaderboard of groups.

Arms of a family train on equally many records, or equally many tokens, in equally many optimizer
steps; students of one seed start from the same weights. Differences are paired by seed and record.
A unit is one student: it is journaled after its evaluation, and a resumed job continues with the
next one and produces the same bytes.

Source of the idea: data attribution by retraining, as in Ilyas et al. 2022, arXiv:2202.00622, here
at the scale of groups. A gain for a small student may not carry over to a large one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError, count_noun
from stillroom.evaluate import MIN_UNITS, Metric, Plot, Report, Table
from stillroom.evaluate.metrics.bootstrap import MIN_RUNS, bootstrap_two_way
from stillroom.jobs import Job
from stillroom.models.tokenization.assistant_mask import EncodedConversation
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact, make_parent
from stillroom.records import Record
from stillroom.synth.experiments.ablations import (
    Ablation,
    AblationGroup,
    DataValueResults,
    Floats,
    RecordPools,
    describe_origins,
    is_plain,
    make_ablation_groups,
    read_human_records,
    read_record_pools,
    sample_records,
)
from stillroom.synth.experiments.students import StudentTrainer
from stillroom.synth.types import derive_seed
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.synth.jobs.data_value import DataValueRecipe

__all__ = ["DataValueRow", "make_leaderboard", "report_data_value", "run_data_value_study"]

_START = "start"


def run_data_value_study(
    recipe: DataValueRecipe, job: Job
) -> tuple[Artifact, Report, DataValueResults]:
    """Train the students of all arms and report the value of each group.

    Writes ``report.json``, ``report.html`` and ``leaderboard.json``.

    Raises:
        DataError: If there is nothing to compare, or there are too few held-out records.
        Cancelled: If the user cancels; finished students are kept.
    """
    with limit_threads(recipe.student.train.threads):
        return _Experiment(recipe, read_record_pools(recipe.paths, recipe.by), job).run()


class _Experiment:
    """One run of the experiment."""

    def __init__(self, recipe: DataValueRecipe, pools: RecordPools, job: Job) -> None:
        self.recipe, self.job = recipe, job
        self._human_path = resolve_local(recipe.human)
        families, small = make_ablation_groups(
            pools, least=recipe.min_group_size, most=recipe.num_records, names=recipe.groups
        )
        self.measured = DataValueResults(recipe, families, small)
        texts = [_text(record) for record in pools.kept]
        self.students = StudentTrainer(recipe.student, texts, job)
        learned = (
            *pools.kept,
            *(record for records in pools.dropped.values() for record in records),
        )
        self.human, self.measured_on = self._read_held_out({_text(record) for record in learned})
        self.cut = self._count_cut(learned)
        self.journal = job.journal("students")
        self._limits: dict[tuple[str, int], int] = {}  # tokens that each arm of a family learns

    def run(self) -> tuple[Artifact, Report, DataValueResults]:
        """Train and evaluate the students, and write the report."""
        recipe, job, measured = self.recipe, self.job, self.measured
        held_out = self.students.encode(self.human)
        units = list(self._units())
        done = sum(key in self.journal for key, *_ in units)
        with job.phase("students", len(units), "students", done=done) as progress:
            for key, arm, family, seed in units:
                if key in self.journal:
                    continue
                job.check_cancelled()
                self.journal.put(key, self._run_unit(key, arm, family, seed, held_out))
                self.students.forget(key)
                progress.advance()
        self._collect(units)
        measured.said = {
            "parameters": self.students.parameters,
            "held_out": len(self.human),
            "measured_on": self.measured_on,
            "cut": self.cut,
            "origins": describe_origins(self.human),
        }
        report = report_data_value(measured)
        report.write(job.output)
        rows = make_leaderboard(measured)
        (job.output / "leaderboard.json").write_text(
            json.dumps([row.to_json() for row in rows], ensure_ascii=False, indent=1) + "\n",
            encoding="utf-8",
        )
        artifact = job.finish(
            "report",
            parents=[
                *(make_parent("records", path, job.out) for path in recipe.paths),
                make_parent("human", self._human_path, job.out),
            ],
            details={**measured.said, **report.to_json()},
        )
        return artifact, report, measured

    def _read_held_out(self, learned: set[str]) -> tuple[list[Record], str]:
        """Return the human records for evaluation, and a summary of the selection.

        Raises:
            DataError: If there are too few to draw a conclusion.
        """
        human = read_human_records(self._human_path)
        once = list({_text(record): record for record in reversed(human)}.values())[::-1]
        unseen = [record for record in once if _text(record) not in learned]
        fitting = [record for record in unseen if is_plain(record) or self.students.fits(record)]
        sample = sample_records(fitting, self.recipe.num_held_out, self.recipe.seed)
        reasons = (
            (len(human) - len(once), "are repetitions"),
            (len(once) - len(unseen), "are trained on"),
            (
                len(unseen) - len(fitting),
                f"are longer than {self.recipe.student.max_tokens} tokens",
            ),
            (len(fitting) - len(sample), "are more than asked for"),
        )
        excluded = "; ".join(f"{count} {why}" for count, why in reasons if count)
        summary = f"{len(sample)} of {count_noun(len(human), 'human record')}" + (
            f" ({excluded})" if excluded else ""
        )
        if len(sample) < MIN_UNITS:
            raise DataError(
                f"too few human records to measure on: {summary}",
                code="synth.too-few",
                where=str(self._human_path),
                expected=f"{MIN_UNITS} or more that fit into the student's token limit",
                next=self._advise(unseen, fitting),
            )
        if excluded:
            self.job.say(f"measured on {summary}")
        return sample, summary

    def _advise(self, unseen: Sequence[Record], fitting: Sequence[Record]) -> str:
        """Return the remedy: a larger token limit if enough records are too long, or more data."""
        if len(fitting) >= MIN_UNITS:
            return f"set num_held_out to {MIN_UNITS} or more"
        if len(unseen) < MIN_UNITS:
            return "give more human records that are not trained on"
        lengths = sorted(
            len(conversation.ids) + conversation.truncated
            for conversation in self.students.encode(unseen)
        )
        nine_in_ten = lengths[math.ceil(0.9 * len(lengths)) - 1]
        return f"student.max_tokens={nine_in_ten} takes nine in ten"

    def _count_cut(self, learned: Sequence[Record]) -> str:
        """Return how many training records are truncated, as text."""
        encoded = self.students.encode(learned)
        cut = sum(conversation.truncated > 0 for conversation in encoded)
        lost = sum(not conversation.targets for conversation in encoded)
        summary = f"{cut} of {len(encoded)}, at {self.recipe.student.max_tokens} tokens"
        if cut:
            self.job.warn(f"truncated training records: {summary}; {lost} have no target left")
        return summary + (f"; {lost} to nothing and left out" if lost else "")

    def _units(self) -> Iterator[tuple[str, Ablation | None, AblationGroup | None, int]]:
        """Yield key, arm, family and seed of every student; the untrained ones first."""
        for seed in range(self.recipe.num_seeds if self.students.is_fresh else 1):
            yield f"{_START}-seed{seed}", None, None, seed
        for number, family in enumerate(self.measured.families):
            for index, arm in enumerate((family.base, *family.arms)):
                for seed in range(self.recipe.num_seeds):
                    yield f"family{number}-arm{index}-seed{seed}", arm, family, seed

    def _run_unit(
        self,
        key: str,
        arm: Ablation | None,
        family: AblationGroup | None,
        seed: int,
        held_out: Sequence[EncodedConversation],
    ) -> dict[str, Any]:
        student_seed = derive_seed(self.recipe.seed, seed)
        num_records, tokens = 0, 0
        if arm is None or family is None:
            model = self.students.create(student_seed)
        else:
            conversations = self._training_set(arm, family, student_seed)
            num_records = len(conversations)
            tokens = sum(len(conversation.ids) for conversation in conversations)
            model = self.students.train(conversations, student_seed, key)
        losses = self.students.losses(model, held_out)
        return {
            "losses": [nats for nats, _ in losses],
            "tokens": [count for _, count in losses],
            "learned": [num_records, tokens],
        }

    def _training_set(
        self, arm: Ablation, family: AblationGroup, seed: int
    ) -> list[EncodedConversation]:
        """Return a student's training set: as many records, or tokens, as every other arm has."""
        conversations = self._encode(sample_records(arm.records, len(arm.records), seed))
        equal_records = conversations[: family.size]
        if self.recipe.equal == "records":
            return equal_records
        if (family.name, seed) not in self._limits:
            self._limits[family.name, seed] = min(
                sum(
                    len(conversation.ids)
                    for conversation in self._encode(
                        sample_records(member.records, family.size, seed)
                    )
                )
                for member in (family.base, *family.arms)
            )
        equal_tokens, total = [], 0
        for conversation in conversations:
            if total >= self._limits[family.name, seed]:
                break
            equal_tokens.append(conversation)
            total += len(conversation.ids)
        return equal_tokens

    def _encode(self, records: Sequence[Record]) -> list[EncodedConversation]:
        return [
            conversation for conversation in self.students.encode(records) if conversation.targets
        ]

    def _collect(
        self, units: Sequence[tuple[str, Ablation | None, AblationGroup | None, int]]
    ) -> None:
        measured = self.measured
        rows: dict[tuple[str, str], list[list[float]]] = {}
        sizes: dict[tuple[str, str], list[list[int]]] = {}
        for key, arm, family, _ in units:
            result = self.journal[key]
            name = (family.name, arm.name) if arm and family else ("", _START)
            rows.setdefault(name, []).append(result["losses"])
            sizes.setdefault(name, []).append(result["learned"])
            measured.tokens = np.array(result["tokens"], dtype=np.float64)
        start = np.array(rows.pop(("", _START)))
        measured.start = np.repeat(start, self.recipe.num_seeds // len(start), axis=0)
        measured.losses = {name: np.array(values) for name, values in rows.items()}
        means = {name: np.mean(values, axis=0) for name, values in sizes.items()}
        measured.learned = {name: (float(mean[0]), float(mean[1])) for name, mean in means.items()}


def _text(record: Record) -> str:
    """Return what two records have in common that differ in spaces and lines alone."""
    return "\n".join(" ".join(message.content.split()) for message in record.messages)


_UNIT = "nats/token"
_GAIN_LABELS = {1: "of those without it", -1: "of it alone"}
"""Description of the gain in a row: the arm is the remaining groups, or the group itself."""


@dataclass(frozen=True, slots=True)
class DataValueRow:
    """Value of one group in one family.

    ``worth`` is the held-out loss it saves at equal size, ``gain`` the improvement of a student of
    the arm over its start, from the ``records`` it trained on. ``runs`` is the number of seeds.
    """

    family: str
    group: str
    arm: str
    worth: Metric
    gain: Metric
    records: float
    tokens: float
    runs: int

    @property
    def verdict(self) -> str:
        """Whether the group helps, harms, or the data are insufficient."""
        if self.worth.is_few:
            return "too few human records"
        if self.runs < MIN_RUNS:
            return "too few seeds"
        return {1: "helps", -1: "harms", 0: "no difference seen"}[self.worth.side()]

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return {
            "family": self.family,
            "group": self.group,
            "arm": self.arm,
            "worth": self.worth.to_json(),
            "gain": self.gain.to_json(),
            "records": self.records,
            "tokens": self.tokens,
            "verdict": self.verdict,
        }


def make_leaderboard(measured: DataValueResults) -> list[DataValueRow]:
    """Return a row for each arm, the most valuable of each family first."""
    rows = []
    for family in measured.families:
        group_rows = [_row(measured, family, arm) for arm in family.arms]
        rows += sorted(group_rows, key=lambda row: (-row.worth.value, row.group))
    return rows


def report_data_value(measured: DataValueResults) -> Report:
    """Build the report of a data value experiment."""
    rows = make_leaderboard(measured)
    report = Report("What the records are worth", _summarize(measured, rows))
    for family in measured.families:
        group_rows = [row for row in rows if row.family == family.name]
        _add_group(report, measured, family, group_rows)
    _add_conditions(report, measured)
    return report


def _row(measured: DataValueResults, family: AblationGroup, arm: Ablation) -> DataValueRow:
    losses = measured.losses[family.name, arm.name]
    base_losses = measured.losses[family.name, family.base.name]
    records, tokens = measured.learned[family.name, arm.name]
    worth = _bootstrap(
        measured, family.sign * (losses - base_losses), f"worth/{family.name}/{arm.group}"
    )
    # the improvement of an arm's students over their start, without extrapolation
    gain = _bootstrap(measured, measured.start - losses, f"gain/{family.name}/{arm.name}")
    return DataValueRow(family.name, arm.group, arm.name, worth, gain, records, tokens, len(losses))


def _bootstrap(measured: DataValueResults, values: Floats, name: str) -> Metric:
    return bootstrap_two_way(
        values, measured.tokens, seed=measured.recipe.seed, name=name, unit=_UNIT
    )


def _add_group(
    report: Report, measured: DataValueResults, family: AblationGroup, rows: list[DataValueRow]
) -> None:
    losses = [
        _bootstrap(
            measured,
            measured.losses[family.name, arm.name],
            f"held-out loss/{family.name}/{arm.name}",
        )
        for arm in (family.base, *family.arms)
    ]
    base = family.base.name
    table = tuple(
        (
            row.group,
            f"{row.worth.value:+.4f}",
            f"{row.worth.low:+.4f} to {row.worth.high:+.4f}",
            row.verdict,
            f"{row.gain.value:.3f}",
            f"{row.gain.low:.3f} to {row.gain.high:.3f}",
            f"{row.records:.0f}",
            f"{row.tokens:.0f}",
        )
        for row in rows
    )
    explanations = {
        1: f"Held-out loss without the group minus that of '{base}': above 0 the group helps.",
        -1: f"Held-out loss of '{base}' minus that of the group alone: above 0 it is better than "
        "that mixture.",
    }
    worths = [row.worth for row in rows]
    report.section(
        family.name.capitalize(),
        f"{explanations[family.sign]} All arms learn from as many {measured.recipe.equal}.",
        metrics=[*worths, *(row.gain for row in rows), *losses],
        plot=Plot.of("worth", worths, labels=[row.group for row in rows]),
        table=Table(
            "the worthiest first; gains are over the student before it learned anything",
            (
                "group",
                "worth, nats/token",
                "interval",
                "verdict",
                f"gain {_GAIN_LABELS[family.sign]}",
                "interval",
                "records",
                "tokens",
            ),
            table,
        ),
    )


def _add_conditions(report: Report, measured: DataValueResults) -> None:
    recipe, student = measured.recipe, measured.recipe.student
    rows = [
        ("student", student.start),
        ("parameters", f"{measured.said['parameters']:,}"),
        ("low-rank additions", str(student.train.lora.rank) if student.train.lora else "none"),
        ("records a step", str(student.train.batch_size)),
        ("seeds", str(recipe.num_seeds)),
        ("measured on", measured.said["measured_on"]),
        ("records that are learned cut off", measured.said["cut"]),
        ("too small to compare", ", ".join(measured.small) or "none"),
    ]
    rows += [
        (f"optimizer steps, {family.name}", str(student.train.count_steps(family.size)))
        for family in measured.families
    ]
    sentences = [
        "Students of one seed start from the same weights. What helps a small student may not help "
        "a large one.",
        measured.said["origins"],
    ]
    report.section(
        "Conditions",
        " ".join(filter(None, sentences)),
        table=Table("of this experiment", ("what", "value"), tuple(rows)),
    )


def _summarize(measured: DataValueResults, rows: list[DataValueRow]) -> str:
    if not rows:
        return "No two groups are large enough to be compared."
    first = measured.families[0].name
    first_rows = [row for row in rows if row.family == first]
    helps = [row.group for row in first_rows if row.verdict == "helps"]
    harms = [row.group for row in first_rows if row.verdict == "harms"]
    basis = f"measured on {measured.said['measured_on']}"
    groups = count_noun(len(first_rows), "group")
    seeds = measured.recipe.num_seeds
    if seeds < MIN_RUNS:
        return (
            f"{groups}, {basis}: nothing is concluded from {seeds} "
            f"seed{'s' * (seeds > 1)}. {MIN_RUNS} or more tell a difference from luck."
        )
    summary = f"{groups}, {seeds} seeds, {basis}, {first} at equal size: "
    summary += f"{', '.join(helps)} help" if helps else "none is seen to help"
    summary += f"; {', '.join(harms)} harm" if harms else ""
    undecided = len(first_rows) - len(helps) - len(harms)
    summary += f"; of {undecided} no difference is seen." if undecided else "."
    mean = float(np.mean([row.worth.high - row.worth.low for row in first_rows])) / 2
    return (
        f"{summary} Differences below about {mean:.3f} nats a token cannot be seen by this "
        "experiment."
    )
