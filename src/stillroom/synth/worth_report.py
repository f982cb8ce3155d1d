"""The report of what records are worth: a leaderboard, and the arms it stands on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stillroom.evaluate import Metric, Plot, Report, Table
from stillroom.evaluate.crossed import LEAST_RUNS, bootstrap_crossed
from stillroom.synth.worth import Measured
from stillroom.synth.worth_arms import Arm, Family

__all__ = ["Row", "leaderboard", "report_worth"]

_UNIT = "nats/token"
_OF_WHOM = {1: "of those without it", -1: "of it alone"}
"""Whose gain a row tells: the arm is what is left, or the group itself."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one group is worth in one family.

    ``worth`` is the held-out loss it saves at equal size, ``gain`` what a student of the arm gains
    over its start, from the ``records`` it learned and no others. ``runs`` is the number of seeds.
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
        """Whether it helps, harms, or nothing can be said."""
        if self.worth.is_few:
            return "too few human records"
        if self.runs < LEAST_RUNS:
            return "too few seeds"
        return {1: "helps", -1: "harms", 0: "no difference seen"}[self.worth.side()]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
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


def leaderboard(measured: Measured) -> list[Row]:
    """Return a row for each arm, the worthiest of each family first."""
    rows = []
    for family in measured.families:
        found = [_row(measured, family, arm) for arm in family.arms]
        rows += sorted(found, key=lambda row: (-row.worth.value, row.group))
    return rows


def report_worth(measured: Measured) -> Report:
    """Return the report."""
    rows = leaderboard(measured)
    report = Report("What the records are worth", _summarize(measured, rows))
    for family in measured.families:
        own = [row for row in rows if row.family == family.name]
        _add_family(report, measured, family, own)
    _add_conditions(report, measured)
    return report


def _row(measured: Measured, family: Family, arm: Arm) -> Row:
    own = measured.losses[family.name, arm.name]
    base = measured.losses[family.name, family.base.name]
    records, tokens = measured.learned[family.name, arm.name]
    worth = bootstrap_crossed(
        family.sign * (own - base),
        measured.tokens,
        seed=measured.plan.seed,
        name=f"worth/{family.name}/{arm.group}",
        unit=_UNIT,
    )
    gain = _gain(measured, family, arm)
    return Row(family.name, arm.group, arm.name, worth, gain, records, tokens, len(own))


def _gain(measured: Measured, family: Family, arm: Arm) -> Metric:
    """Return how much better than its start a student is, with nothing extrapolated."""
    own = measured.losses[family.name, arm.name]
    return bootstrap_crossed(
        measured.start - own,
        measured.tokens,
        seed=measured.plan.seed,
        name=f"gain/{family.name}/{arm.name}",
        unit=_UNIT,
    )


def _add_family(report: Report, measured: Measured, family: Family, rows: list[Row]) -> None:
    losses = [_loss(measured, family, arm) for arm in (family.base, *family.arms)]
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
    says = {
        1: f"Held-out loss without the group minus that of '{base}': above 0 the group helps.",
        -1: f"Held-out loss of '{base}' minus that of the group alone: above 0 it is better than "
        "that mixture.",
    }
    worths = [replace(row.worth) for row in rows]
    report.section(
        family.name.capitalize(),
        f"{says[family.sign]} All arms learn from as many {measured.plan.equal}.",
        metrics=[*worths, *(row.gain for row in rows), *losses],
        plot=Plot.of("worth", worths, labels=[row.group for row in rows]),
        table=Table(
            "the worthiest first; gains are over the student before it learned anything",
            (
                "group",
                "worth, nats/token",
                "interval",
                "verdict",
                f"gain {_OF_WHOM[family.sign]}",
                "interval",
                "records",
                "tokens",
            ),
            table,
        ),
    )


def _loss(measured: Measured, family: Family, arm: Arm) -> Metric:
    return bootstrap_crossed(
        measured.losses[family.name, arm.name],
        measured.tokens,
        seed=measured.plan.seed,
        name=f"held-out loss/{family.name}/{arm.name}",
        unit=_UNIT,
    )


def _add_conditions(report: Report, measured: Measured) -> None:
    plan, student = measured.plan, measured.plan.student
    rows = [
        ("student", student.start),
        ("parameters", f"{measured.said['parameters']:,}"),
        ("low-rank additions", str(student.train.lora.rank) if student.train.lora else "none"),
        ("records a step", str(student.train.batch_size)),
        ("seeds", str(plan.seeds)),
        ("measured on", measured.said["measured_on"]),
        ("records that are learned cut off", measured.said["cut"]),
        ("groups too small to compare", ", ".join(measured.small) or "none"),
    ]
    rows += [
        (f"optimizer steps, {family.name}", str(student.train.count_steps(family.size)))
        for family in measured.families
    ]
    said = [
        "Students of one seed start from the same weights. What helps a small student may not help "
        "a large one.",
        measured.said["origins"],
    ]
    report.section(
        "Conditions",
        " ".join(filter(None, said)),
        table=Table("of this experiment", ("what", "value"), tuple(rows)),
    )


def _summarize(measured: Measured, rows: list[Row]) -> str:
    if not rows:
        return "No two groups are large enough to be compared."
    first = measured.families[0].name
    own = [row for row in rows if row.family == first]
    helps = [row.group for row in own if row.verdict == "helps"]
    harms = [row.group for row in own if row.verdict == "harms"]
    on = f"measured on {measured.said['measured_on']}"
    seeds = measured.plan.seeds
    if seeds < LEAST_RUNS:
        return (
            f"{len(own)} groups, {on}: nothing is concluded from {seeds} "
            f"seed{'s' * (seeds > 1)}. {LEAST_RUNS} or more tell a difference from luck."
        )
    said = f"{len(own)} groups, {seeds} seeds, {on}, {first} at equal size: "
    said += f"{', '.join(helps)} help" if helps else "none is seen to help"
    said += f"; {', '.join(harms)} harm" if harms else ""
    rest = len(own) - len(helps) - len(harms)
    said += f"; of {rest} no difference is seen." if rest else "."
    mean = float(np.mean([row.worth.high - row.worth.low for row in own])) / 2
    return (
        f"{said} Differences below about {mean:.3f} nats a token cannot be seen by this experiment."
    )
