"""Model collapse study: results and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.evaluate import Metric, Report, Table, warn_small_sample
from stillroom.evaluate.charts import LineChart, Series
from stillroom.evaluate.metrics.bootstrap import MIN_RUNS, bootstrap_two_way
from stillroom.evaluate.report import ComparisonTable
from stillroom.synth.experiments.diversity_monitor import WORSE_DIRECTION, DiversityAlarm
from stillroom.synth.selection import MIX_RULES

if TYPE_CHECKING:
    from stillroom.synth.jobs.collapse import CollapseRecipe

__all__ = [
    "LOSS_RISE",
    "CollapseResults",
    "CollapseVerdict",
    "StudentRun",
    "judge_rules",
    "report_collapse",
]

LOSS_RISE = 0.05
"""Rise of held-out loss that an alarm should precede."""

_FIGURE_NAMES = {
    "distinct_1": "distinct words",
    "distinct_3": "distinct runs of three words",
    "self_bleu": "how much each text is like the others",
    "compression": "how much the texts compress",
    "repeated": "four-word runs that another text has too",
    "tail": "mass of the held-out text's rare words, 1 where it is as heavy as there",
    "vendi": "how many different meanings there are",
    "spread": "mean distance of two texts' meanings",
    "coverage": "share of held-out meanings that have a neighbor",
    "surprise": "bits a character of held-out text under character n-grams of all that is learned",
}


@dataclass(frozen=True, slots=True)
class CollapseVerdict:
    """Outcome of one rule and seed: first generation with an alarm, first with a 5 % rise of loss.

    None where there was none.
    """

    rule: str
    seed: int
    warned: int | None
    risen: int | None


def judge_rules(outcome: CollapseResults) -> list[CollapseVerdict]:
    """Return, for each rule and seed, the first alarm and the first rise of held-out loss."""
    recipe, verdicts = outcome.recipe, []
    for rule in recipe.rules:
        for seed in range(recipe.num_seeds):
            first = sum(outcome.losses[StudentRun(seed, "", 0)])
            numbers = range(1, recipe.generations + 1)
            warned = [
                generation
                for generation in numbers
                if outcome.warned[StudentRun(seed, rule, generation)]
            ]
            risen = [
                generation
                for generation in numbers
                if sum(outcome.losses[StudentRun(seed, rule, generation)]) / first - 1 > LOSS_RISE
            ]
            verdicts.append(
                CollapseVerdict(
                    rule, seed, warned[0] if warned else None, risen[0] if risen else None
                )
            )
    return verdicts


def report_collapse(outcome: CollapseResults) -> Report:
    """Build the report: loss, verdicts, every metric, and the conditions."""
    recipe = outcome.recipe
    rises: dict[tuple[str, int], Metric] = {
        (rule, generation): _rise(outcome, rule, generation)
        for rule in recipe.rules
        for generation in range(1, recipe.generations + 1)
    }
    verdicts = judge_rules(outcome)
    few = _describe_small_study(recipe, outcome.said["held_out"])
    report = Report("Replace against accumulate", _summarize(recipe, rises, verdicts, few))
    for rule in recipe.rules:
        report.add(rises[rule, recipe.generations], is_headline=True)
    _add_loss(report, outcome, rises)
    _add_verdicts(report, verdicts)
    names = list(next(iter(outcome.figures.values())))
    for name in names:
        _add_figure(report, outcome, name)
    _add_numbers(report, outcome, names)
    _add_conditions(report, outcome)
    return report


def _rise(outcome: CollapseResults, rule: str, generation: int) -> Metric:
    """Return the relative rise of held-out loss over generation 0, across seeds and records."""
    seeds = range(outcome.recipe.num_seeds)
    now = np.array([outcome.losses[StudentRun(seed, rule, generation)] for seed in seeds])
    first = np.array([outcome.losses[StudentRun(seed, "", 0)] for seed in seeds])
    return bootstrap_two_way(
        now,
        np.array(outcome.tokens, dtype=np.float64),
        over=first,
        seed=outcome.recipe.seed,
        name=f"rise of held-out loss/{rule}/generation {generation}",
    )


def _loss(outcome: CollapseResults, rule: str, generation: int) -> Metric:
    unit_rule = rule if generation else ""
    table = [
        outcome.losses[StudentRun(seed, unit_rule, generation)]
        for seed in range(outcome.recipe.num_seeds)
    ]
    return bootstrap_two_way(
        np.array(table),
        np.array(outcome.tokens, dtype=np.float64),
        seed=outcome.recipe.seed,
        name=f"held-out loss/{rule}/generation {generation}",
        unit="nats/token",
    )


def _add_loss(
    report: Report, outcome: CollapseResults, rises: Mapping[tuple[str, int], Metric]
) -> None:
    recipe = outcome.recipe
    numbers = range(recipe.generations + 1)
    series, rows, metrics = [], [], []
    for rule in recipe.rules:
        rises_of_rule = [rises[rule, generation] for generation in numbers if generation]
        series.append(
            Series(
                rule,
                (
                    (0.0, 0.0),
                    *(
                        (float(generation + 1), 100 * rise.value)
                        for generation, rise in enumerate(rises_of_rule)
                    ),
                ),
                style=MIX_RULES.index(rule),
                spans=((0.0, 0.0), *((100 * rise.low, 100 * rise.high) for rise in rises_of_rule)),
            )
        )
        losses = [_loss(outcome, rule, generation) for generation in numbers]
        metrics += [*rises_of_rule, *losses]
        for generation in numbers:
            rise = rises[rule, generation] if generation else None
            rows.append(
                (
                    rule,
                    str(generation),
                    f"{losses[generation].value:.3f}",
                    f"{losses[generation].low:.3f} to {losses[generation].high:.3f}",
                    f"{rise.value:+.1%}" if rise else "",
                    f"{rise.low:+.1%} to {rise.high:+.1%}" if rise else "",
                )
            )
    curves = LineChart(
        "By how much each generation's student is worse on human text than generation 0's",
        "generation",
        "rise of held-out loss, %",
        tuple(series),
    )
    for metric in metrics:
        report.add(metric)
    report.section(
        "Held-out loss",
        "Of human records that nobody learned from. Intervals draw seeds and records anew.",
        curves=[curves],
        table=Table(
            "a row a rule and generation",
            ("rule", "generation", "nats/token", "interval", "rise", "interval"),
            tuple(rows),
        ),
    )


def _add_verdicts(report: Report, verdicts: Sequence[CollapseVerdict]) -> None:
    rows = tuple(
        (
            verdict.rule,
            str(verdict.seed),
            "never" if verdict.warned is None else f"data of generation {verdict.warned}",
            "never" if verdict.risen is None else f"student of generation {verdict.risen}",
            _order(verdict),
        )
        for verdict in verdicts
    )
    report.section(
        "The monitor's warning",
        "Data are measured before their student is trained: a warning of generation n's data comes "
        "before generation n's loss.",
        table=Table(
            f"when the monitor warned, and when loss had risen by {LOSS_RISE:.0%}",
            ("rule", "seed", "warned of", "risen by", "warned first"),
            rows,
        ),
    )


def _order(verdict: CollapseVerdict) -> str:
    if verdict.risen is None:
        return "nothing to warn of" if verdict.warned is None else "no such rise"
    return "yes" if verdict.warned is not None and verdict.warned <= verdict.risen else "no"


def _add_figure(report: Report, outcome: CollapseResults, name: str) -> None:
    recipe = outcome.recipe
    series, metrics = [], []
    for rule in recipe.rules:
        points = []
        for generation in range(recipe.generations + 1):
            units = [
                StudentRun(seed, rule if generation else "", generation)
                for seed in range(recipe.num_seeds)
            ]
            metrics_by_seed = [outcome.figures[unit][name] for unit in units]
            mean = float(np.mean([metric.value for metric in metrics_by_seed]))
            points.append((float(generation), mean))
            metrics.append(
                replace(
                    metrics_by_seed[0],
                    name=f"{name}/{rule}/generation {generation}",
                    value=mean,
                    low=min(metric.low for metric in metrics_by_seed),
                    high=max(metric.high for metric in metrics_by_seed),
                    note="",
                )
            )
        series.append(Series(rule, tuple(points), style=MIX_RULES.index(rule)))
    worse = "Lower" if WORSE_DIRECTION[name] < 0 else "Higher"
    description = _FIGURE_NAMES.get(name, name)
    for metric in metrics:
        report.add(metric)
    report.section(
        f"Data: {name}",
        f"{description[0].upper()}{description[1:]}. {worse} is worse.",
        curves=[
            LineChart(
                f"{name} of what each generation learned from", "generation", name, tuple(series)
            )
        ],
    )


def _add_numbers(report: Report, outcome: CollapseResults, names: Sequence[str]) -> None:
    """Add every value with its interval, one column per rule."""
    recipe = outcome.recipe
    rows = []
    for measure in ("held-out loss", "rise of held-out loss", *names):
        for generation in range(recipe.generations + 1):
            cells = tuple(f"{measure}/{rule}/generation {generation}" for rule in recipe.rules)
            if cells[0] in report.metrics:
                rows.append(
                    (f"{measure}, generation {generation}", report.metrics[cells[0]].unit, cells)
                )
    report.section(
        "All measurements",
        "Losses and their rises with intervals over seeds and records; figures of data as the mean "
        "of all seeds, with the least low and the greatest high end of their intervals.",
        grid=ComparisonTable("by rule", tuple(recipe.rules), tuple(rows)),
    )


def _add_conditions(report: Report, outcome: CollapseResults) -> None:
    recipe, student = outcome.recipe, outcome.recipe.student
    facts = outcome.said
    sizes = {rule: outcome.sizes[StudentRun(0, rule, recipe.generations)] for rule in recipe.rules}
    rows = (
        ("student", student.start),
        ("parameters", f"{facts['parameters']:,}"),
        ("optimizer steps a student", _steps(outcome)),
        ("records a step", str(student.train.batch_size)),
        ("human records", str(facts["records"])),
        ("held-out records", str(facts["held_out"])),
        ("tokens of a record, at most", str(student.max_tokens)),
        ("share of human records, at least", f"{recipe.human_share:.0%}"),
        (
            f"records learned from in generation {recipe.generations}",
            ", ".join(f"{rule} {size}" for rule, size in sizes.items()),
        ),
        ("seeds", str(recipe.num_seeds)),
        ("embedder", recipe.embedder or "none"),
        ("words of a draw", str(facts["budget_words"])),
    )
    report.section(
        "Conditions",
        " ".join(
            filter(
                None,
                (
                    "All students of a seed start from the same weights.",
                    f"Each reads what it learns from {student.train.epochs:g} times, so that more "
                    "records are more steps."
                    if student.train.steps is None
                    else "All take as many steps, however many records they learn from: where "
                    "records accumulate, each is read less often, those of people too.",
                    facts["origins"],
                ),
            )
        ),
        table=Table("of this experiment", ("what", "value"), rows),
    )


def _steps(outcome: CollapseResults) -> str:
    """Return the optimizer steps of the students of the first and last generation, as text."""
    recipe, count = outcome.recipe, outcome.recipe.student.train.count_steps
    if recipe.student.train.steps is not None:
        return str(recipe.student.train.steps)
    last = (
        f"{rule} {count(outcome.sizes[StudentRun(0, rule, recipe.generations)])}"
        for rule in recipe.rules
    )
    return f"{count(outcome.said['records'])} at first, in the end {', '.join(last)}"


def _describe_small_study(recipe: CollapseRecipe, held_out: int) -> str:
    """Return why no conclusion is drawn, where there are too few records or seeds."""
    if few := warn_small_sample(held_out, "held-out records"):
        return few
    if recipe.num_seeds >= MIN_RUNS:
        return ""
    return (
        f"{recipe.num_seeds} seed{'s' * (recipe.num_seeds > 1)} do not tell a difference from luck "
        f"({MIN_RUNS} or more are wanted)."
    )


def _summarize(
    recipe: CollapseRecipe,
    rises: Mapping[tuple[str, int], Metric],
    verdicts: Sequence[CollapseVerdict],
    few: str,
) -> str:
    losses = []
    for rule in recipe.rules:
        last = rises[rule, recipe.generations]
        losses.append(f"{rule}: {last.value:+.1%} ({last.low:+.1%} to {last.high:+.1%})")
    summary = (
        f"Held-out loss after {recipe.generations} generations, against that of a student of human "
        f"records: {'; '.join(losses)}."
    )
    if few:
        return f"{summary} Nothing is concluded: {few}"
    rose = [verdict for verdict in verdicts if verdict.risen is not None]
    early = sum(_order(verdict) == "yes" for verdict in rose)
    timing = (
        f"Where loss rose by {LOSS_RISE:.0%}, the monitor had warned before in {early} of "
        f"{len(rose)} "
        "cases"
        if rose
        else f"Loss never rose by {LOSS_RISE:.0%}"
    )
    calm = [verdict for verdict in verdicts if verdict.risen is None]
    false = sum(verdict.warned is not None for verdict in calm)
    timing += f"; it also warned in {false} of {len(calm)} where it did not." if calm else "."
    return f"{summary} {timing}"


@dataclass(frozen=True, slots=True)
class StudentRun:
    """One student: its seed, its rule (empty for generation 0, shared by all), its generation."""

    seed: int
    rule: str
    generation: int

    @property
    def key(self) -> str:
        """Name in the journal and in file names."""
        return f"{self.rule or 'human'}-{self.generation}-seed{self.seed}"


@dataclass
class CollapseResults:
    """Losses of each student by held-out record, and the metrics of its training data."""

    recipe: CollapseRecipe
    tokens: list[int] = field(default_factory=list)
    losses: dict[StudentRun, list[float]] = field(default_factory=dict)
    figures: dict[StudentRun, dict[str, Metric]] = field(default_factory=dict)
    warned: dict[StudentRun, list[DiversityAlarm]] = field(default_factory=dict)
    sizes: dict[StudentRun, int] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)
