"""What records are worth: a small student is trained on subsets and measured on human records.

Arms of a family learn from equally many records, or equally many tokens, in as many optimizer
steps; students of one seed start from the same weights. Differences are taken seed by seed and
record by record. A unit is one student: it is journaled when it is measured, and a killed job goes
on with the next one to the same bytes.

Source of the idea: data attribution by retraining, as in Ilyas et al. 2022, arXiv:2202.00622, here
at the scale of groups. A gain for a small student is no promise for a large one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.evaluate import LEAST_UNITS
from stillroom.evaluate.spans import Encoded
from stillroom.jobs import Estimate, Job, Reporter
from stillroom.provenance import Artifact, make_parent
from stillroom.records import Record
from stillroom.synth.generations import count_parameters
from stillroom.synth.human import describe_origins, draw_records, read_human
from stillroom.synth.method import derive_seed
from stillroom.synth.students import Students, StudentSettings, is_plain
from stillroom.synth.worth_arms import Arm, Family, Pools, draw_arm, make_families, read_pools
from stillroom.train.precision import fixed_threads

if TYPE_CHECKING:
    from stillroom.evaluate import Report

__all__ = ["Measured", "Worth", "estimate_worth", "measure_worth"]

Floats = npt.NDArray[np.float64]

_START = "start"
_FLOPS = 12e9


@dataclass(frozen=True, slots=True)
class Worth:
    """Which records, measured on what, in which groups, and how large the experiment is.

    ``equal`` is what all arms of a family have as much of. ``records`` is the most that an arm
    learns from, ``held_out`` the most that is measured on, ``least`` what a group needs. ``groups``
    are compared, by default all; where groups are filters, one is called ``all filters``.
    """

    paths: tuple[Path, ...]
    human: Path
    by: str = "generator"
    seeds: int = 3
    records: int = 1000
    held_out: int = 200
    least: int = 20
    equal: Literal["tokens", "records"] = "tokens"
    student: StudentSettings = field(default_factory=StudentSettings)
    seed: int = 0
    groups: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Return the settings as YAML, for the job."""
        told = asdict(self) | {
            "paths": [str(path) for path in self.paths],
            "human": str(self.human),
            "student": self.student.model_dump(mode="json"),
        }
        return "# stillroom synth worth\n" + "".join(
            f"{name}: {json.dumps(value)}\n" for name, value in told.items()
        )


@dataclass
class Measured:
    """What was measured: the losses of every arm by seed and held-out record, (R, N)."""

    plan: Worth
    families: list[Family]
    small: list[str]
    tokens: Floats = field(default_factory=lambda: np.zeros(0))
    losses: dict[tuple[str, str], Floats] = field(default_factory=dict)
    learned: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    start: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    said: dict[str, Any] = field(default_factory=dict)


def measure_worth(
    plan: Worth,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, Report, Measured]:
    """Train the students of all arms and say what each group is worth.

    Leaves ``report.json``, ``report.html`` and ``leaderboard.json``.

    Args:
        plan: The experiment.
        out: The folder of the report.
        resume: Go on where a killed run stopped.
        overwrite: Replace what an earlier job left at ``out``.
        reporter: What draws progress; default nothing.

    Raises:
        DataError: If there is nothing to compare, or too little to measure on.
        Cancelled: If the user asked for it; finished students are kept.
    """
    pools = read_pools(plan.paths, plan.by)
    job = Job.start(
        out, plan.to_text(), seed=plan.seed, resume=resume, overwrite=overwrite, reporter=reporter
    )
    try:
        with job.interruptible(), fixed_threads(plan.student.train.threads):
            return _Experiment(plan, pools, job).run()
    finally:
        job.close()


def estimate_worth(plan: Worth) -> Estimate:
    """Return what the experiment will need, by its arms and the size of its student."""
    families, _ = make_families(
        read_pools(plan.paths, plan.by), least=plan.least, most=plan.records, chosen=plan.groups
    )
    students = plan.seeds * sum(1 + len(family.arms) for family in families)
    parameters = count_parameters(plan.student)
    settings = plan.student
    size = max((family.size for family in families), default=0)
    steps = settings.train.count_steps(size)
    learned = steps * settings.train.batch_size * settings.max_tokens
    read = plan.held_out * settings.max_tokens
    each = parameters * (6.0 * learned + 2.0 * read) / _FLOPS
    return Estimate(
        memory_bytes=int(parameters * 20 + 1_000_000_000),
        disk_bytes=int(parameters * 16 + students * plan.held_out * 40),
        seconds=students * (each + 3.0),
        memory_knob="take a smaller student",
        disk_knob="take a smaller student",
        basis=f"{students} students of {parameters / 1e6:.1f} M parameters, {steps} steps each",
    )


class _Experiment:
    """One run of the experiment."""

    def __init__(self, plan: Worth, pools: Pools, job: Job) -> None:
        self.plan, self.job = plan, job
        families, small = make_families(
            pools, least=plan.least, most=plan.records, chosen=plan.groups
        )
        self.measured = Measured(plan, families, small)
        texts = [_text(record) for record in pools.kept]
        self.students = Students(plan.student, texts, job)
        learned = (*pools.kept, *(one for found in pools.dropped.values() for one in found))
        self.human, self.measured_on = self._read_held_out({_text(one) for one in learned})
        self.cut = self._count_cut(learned)
        self.journal = job.journal("students")

    def run(self) -> tuple[Artifact, Report, Measured]:
        """Train, measure, report."""
        from stillroom.synth.worth_report import leaderboard, report_worth

        plan, job, measured = self.plan, self.job, self.measured
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
        report = report_worth(measured)
        report.write(job.output)
        rows = leaderboard(measured)
        (job.output / "leaderboard.json").write_text(
            json.dumps([row.to_json() for row in rows], ensure_ascii=False, indent=1) + "\n",
            encoding="utf-8",
        )
        artifact = job.finish(
            "report",
            parents=[
                *(make_parent("records", path, job.out) for path in plan.paths),
                make_parent("human", plan.human, job.out),
            ],
            details={**measured.said, **report.to_json()},
        )
        return artifact, report, measured

    def _read_held_out(self, learned: set[str]) -> tuple[list[Record], str]:
        """Return the human records that are measured on, and in words how many of which.

        Raises:
            DataError: If these are too few to conclude anything from.
        """
        given = read_human(self.plan.human)
        every = [one for one in given if _text(one) not in learned]
        fit = [one for one in every if is_plain(one) or self.students.fits(one)]
        drawn = draw_records(fit, self.plan.held_out, self.plan.seed)
        reasons = (
            (len(given) - len(every), "are learned from"),
            (len(every) - len(fit), f"are longer than {self.plan.student.max_tokens} tokens"),
            (len(fit) - len(drawn), "are more than asked for"),
        )
        left = "; ".join(f"{count} {why}" for count, why in reasons if count)
        told = f"{len(drawn)} of {len(given)} human records" + (f" ({left})" if left else "")
        if len(drawn) < LEAST_UNITS:
            raise DataError(
                f"measured on {told}, nothing could be concluded",
                code="synth.too-few",
                where=str(self.plan.human),
                expected=f"{LEAST_UNITS} or more that fit into a student's tokens",
                next=self._advise(every, fit),
            )
        if left:
            self.job.say(f"measured on {told}")
        return drawn, told

    def _advise(self, every: Sequence[Record], fit: Sequence[Record]) -> str:
        """Return what helps: more tokens where enough records are too long, else more records."""
        if len(fit) >= LEAST_UNITS:
            return f"--held-out {LEAST_UNITS} or more"
        if len(every) < LEAST_UNITS:
            return "give more human records that nobody learns from"
        lengths = sorted(len(one.ids) + one.truncated for one in self.students.encode(every))
        return f"--max-tokens {lengths[math.ceil(0.9 * len(lengths)) - 1]} takes nine in ten"

    def _count_cut(self, learned: Sequence[Record]) -> str:
        """Return in words how many records are longer than a student reads."""
        encoded = self.students.encode(learned)
        cut = sum(one.truncated > 0 for one in encoded)
        lost = sum(not one.targets for one in encoded)
        told = f"{cut} of {len(encoded)}, at {self.plan.student.max_tokens} tokens"
        if cut:
            self.job.say(f"records that are learned cut off: {told}; {lost} to nothing")
        return told + (f"; {lost} to nothing and left out" if lost else "")

    def _units(self) -> Iterator[tuple[str, Arm | None, Family | None, int]]:
        """Yield key, arm, family and seed of every student; the untaught ones first."""
        for seed in range(self.plan.seeds if self.students.is_fresh else 1):
            yield f"{_START}-seed{seed}", None, None, seed
        for number, family in enumerate(self.measured.families):
            for place, arm in enumerate((family.base, *family.arms)):
                for seed in range(self.plan.seeds):
                    yield f"family{number}-arm{place}-seed{seed}", arm, family, seed

    def _run_unit(
        self,
        key: str,
        arm: Arm | None,
        family: Family | None,
        seed: int,
        held_out: Sequence[Encoded],
    ) -> dict[str, Any]:
        own = derive_seed(self.plan.seed, seed)
        learned, tokens = 0, 0
        if arm is None or family is None:
            model = self.students.begin(own)
        else:
            lessons = self._lessons(arm, family, own)
            learned, tokens = len(lessons), sum(len(one.ids) for one in lessons)
            model = self.students.teach(lessons, own, key)
        losses = self.students.losses(model, held_out)
        return {
            "losses": [nats for nats, _ in losses],
            "tokens": [count for _, count in losses],
            "learned": [learned, tokens],
        }

    def _lessons(self, arm: Arm, family: Family, seed: int) -> list[Encoded]:
        """Return what a student learns from: as many records, or tokens, as every arm has."""
        every = self._encode(draw_arm(arm, len(arm.records), seed))
        chosen = every[: family.size]
        if self.plan.equal == "records":
            return chosen
        limit = min(
            sum(len(one.ids) for one in self._encode(draw_arm(other, family.size, seed)))
            for other in (family.base, *family.arms)
        )
        found, held = [], 0
        for one in every:
            if held >= limit:
                break
            found.append(one)
            held += len(one.ids)
        return found

    def _encode(self, records: Sequence[Record]) -> list[Encoded]:
        return [one for one in self.students.encode(records) if one.targets]

    def _collect(self, units: Sequence[tuple[str, Arm | None, Family | None, int]]) -> None:
        measured = self.measured
        rows: dict[tuple[str, str], list[list[float]]] = {}
        sizes: dict[tuple[str, str], list[list[int]]] = {}
        for key, arm, family, _ in units:
            told = self.journal[key]
            name = (family.name, arm.name) if arm and family else ("", _START)
            rows.setdefault(name, []).append(told["losses"])
            sizes.setdefault(name, []).append(told["learned"])
            measured.tokens = np.array(told["tokens"], dtype=np.float64)
        start = np.array(rows.pop(("", _START)))
        measured.start = np.repeat(start, self.plan.seeds // len(start), axis=0)
        measured.losses = {name: np.array(found) for name, found in rows.items()}
        means = {name: np.mean(found, axis=0) for name, found in sizes.items()}
        measured.learned = {name: (float(one[0]), float(one[1])) for name, one in means.items()}


def _text(record: Record) -> str:
    return "\n".join(one.content for one in record.messages)
