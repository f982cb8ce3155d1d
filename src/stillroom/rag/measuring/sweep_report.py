"""The report of a sweep: what to use, the leaderboard, and which change is worth its cost."""

from __future__ import annotations

from stillroom.evaluate import Metric, Report, Table, say_few
from stillroom.rag.measuring.sweeping import Change, Measured, Outcome

__all__ = ["advise", "report_sweep"]

_MEGA = 1e6


def report_sweep(outcome: Outcome, measure: str, first: Measured) -> Report:
    """Return the report of a sweep.

    Args:
        outcome: What it shows.
        measure: What was made high.
        first: The configuration that all are compared with.
    """
    report = Report("Sweep", advise(outcome, measure, first))
    report.add(outcome.held_out, is_headline=True)
    for metric in (outcome.first_held_out, outcome.difference):
        report.add(metric)
    report.section(
        "Leaderboard",
        f"On the {outcome.choosing} questions that choose. The first row's value is too high: "
        "they chose it. Times are a query's, its embedding included; passages and seconds are "
        "those of the index, embedded counts what no earlier index had.",
        table=_leaderboard(outcome, measure),
    )
    report.section(
        "The best on questions that did not choose it",
        f"{outcome.measuring} questions.",
        table=_held_out(outcome, first),
    )
    if outcome.changes:
        report.section(
            f"Each change from {first.configuration.name}",
            f"On all {outcome.choosing + outcome.measuring} questions, one changed setting first; "
            f"p by Fisher's randomization, corrected for {len(outcome.changes)} comparisons "
            "(Holm).",
            table=_changes(outcome),
        )
    return report


def advise(outcome: Outcome, measure: str, first: Measured) -> str:
    """Return what a sweep says in two or three sentences: what to use, and what is worth it."""
    name, old = outcome.best.configuration.name, first.configuration.name
    if outcome.is_gain:
        more = outcome.best.cost.cpu_ms - first.cost.cpu_ms
        size = (outcome.best.cost.index_bytes - first.cost.index_bytes) / _MEGA
        said = (
            f"Use {name}: on {outcome.measuring} questions that had no part in choosing it, it "
            f"finds {_say(outcome.difference, sign=True)} {measure} more than {old}, for "
            f"{more:+.1f} CPU ms a query and {size:+.1f} MB of index."
        )
    elif outcome.best is first:
        said = f"Keep {old}: nothing did better on the {outcome.choosing} questions that choose."
    else:
        few = say_few(outcome.measuring, "questions")
        said = (
            f"Keep {old}: {name} did best on the questions that choose, and on the "
            f"{outcome.measuring} others the difference is {_say(outcome.difference, sign=True)}"
            + (f". {few}" if few else ", which does not lie above 0.")
        )
    single = [change for change in outcome.changes if len(change.axes) == 1]
    worth = [_say_change(change) for change in single if change.verdict == "gain"]
    idle = sum(change.verdict == "not shown" for change in single)
    worse = sum(change.verdict == "loss" for change in single)
    if single:
        said += " Worth it by itself: " + ("; ".join(worth) if worth else "no single change") + "."
        said += f" Not shown to matter: {idle}; worse: {worse}." if idle or worse else ""
    return said


def _say_change(change: Change) -> str:
    axis = change.axes[0]
    value = change.measured.configuration.choices[axis]
    return f"{axis} {value} ({change.difference.value:+.3f} for {change.cpu_ms:+.1f} CPU ms)"


def _leaderboard(outcome: Outcome, measure: str) -> Table:
    rows = tuple(
        (
            one.configuration.name,
            _say(metric),
            f"{one.cost.cpu_ms:.1f}",
            f"{one.cost.p50_ms:.1f}",
            f"{one.cost.p95_ms:.1f}",
            f"{one.cost.index_bytes / _MEGA:.2f}",
            f"{one.cost.passages:,}",
            f"{one.cost.build_s:.1f}",
            f"{one.cost.embedded:,}",
            f"{one.cost.tokens:.0f}",
        )
        for one, metric in outcome.leaderboard
    )
    columns = ("configuration", measure, "CPU ms", "p50 ms", "p95 ms", "index MB", "passages")
    return Table("best first", (*columns, "build s", "embedded", "model tokens a query"), rows)


def _held_out(outcome: Outcome, first: Measured) -> Table:
    rows = (
        (outcome.best.configuration.name, _say(outcome.held_out), ""),
        (first.configuration.name, _say(outcome.first_held_out), ""),
        ("difference", _say(outcome.difference, sign=True), f"{outcome.p:.4f}"),
    )
    return Table("with 95 % intervals", ("configuration", "value", "p"), rows)


def _changes(outcome: Outcome) -> Table:
    rows = tuple(
        (
            "; ".join(
                f"{axis}: {change.measured.configuration.choices[axis]}" for axis in change.axes
            ),
            _say(change.difference, sign=True),
            f"{change.p:.4f}",
            f"{change.cpu_ms:+.1f}",
            f"{change.index_bytes / _MEGA:+.2f}",
            change.verdict,
        )
        for change in outcome.changes
    )
    columns = ("change", "difference", "p", "CPU ms", "index MB", "verdict")
    return Table("against the first configuration", columns, rows)


def _say(metric: Metric, *, sign: bool = False) -> str:
    style = "+.4f" if sign else ".4f"
    return f"{metric.value:{style}} [{metric.low:{style}}, {metric.high:{style}}]"
