"""HTML report of a run: yield by step, rejections, diversity, contamination and licenses.

All figures come from the report and the records; no model is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillroom.errors import count_noun
from stillroom.evaluate.charts import Plot
from stillroom.evaluate.metrics.bootstrap import Metric
from stillroom.evaluate.report import Report, Table, render_page
from stillroom.synth.interfaces import Filter, ModelScoredFilter
from stillroom.synth.output.model_terms import find_model_terms
from stillroom.synth.pipeline.statistics import (
    LENGTH_BINS,
    MIN_DIVERSITY_WORDS,
    DiversityMetrics,
    RecordStats,
    RejectionStats,
    compare_diversity,
    summarize_rejected,
)
from stillroom.synth.prompting.conversation import get_last_answer, get_last_instruction
from stillroom.synth.types import RejectedRecord

__all__ = [
    "REPORT_PAGE",
    "ReportInput",
    "add_coverage",
    "add_diversity",
    "is_report_page",
    "render_report",
]

REPORT_PAGE = "report.html"
_SHOWN = 240
_REASONS = 12
_MAX_OPENINGS = 10


@dataclass(frozen=True, slots=True)
class ReportInput:
    """Input of a report page.

    ``report`` is the run's report.json, ``seeds`` the texts that it started from,
    ``teachers`` are the references of the teacher models, ``checks`` all filters. The rejected rows
    are iterated once.
    """

    report: Mapping[str, Any]
    train: RecordStats
    held_out: RecordStats
    dropped: Iterable[RejectedRecord]
    seeds: Sequence[str] = ()
    teachers: Sequence[str] = ()
    checks: Sequence[Filter] = ()


def is_report_page(path: str) -> bool:
    """Return whether a file is the report page, which contains paths and is not digested."""
    return path == f"output/{REPORT_PAGE}"


def render_report(facts: ReportInput) -> str:
    """Render the page of a run as self-contained HTML."""
    rejections = RejectionStats.of(facts.dropped)
    report = Report("Records of a run", _summarize(facts, rejections))
    _add_headlines(report, facts)
    _add_steps(report, facts)
    _add_reasons(report, rejections)
    _add_examples(report, facts, rejections)
    add_diversity(report, compare_diversity(facts.train.sample, facts.seeds))
    add_coverage(report, facts.train, facts.report["splits"]["train"].get("documents", 0))
    _add_contamination(report, facts, rejections)
    _add_rights(report, facts)
    _add_judges(report, facts)
    return render_page(report.to_json())


def _summarize(facts: ReportInput, rejections: RejectionStats) -> str:
    train, held_out = facts.train.count, facts.held_out.count
    rejected, requests = rejections.counts.total(), facts.report["spent"]["asks"]
    summary = (
        f"{count_noun(train + held_out, 'record')} kept, {held_out} of them held out; "
        f"{count_noun(rejected, 'row')} rejected"
    )
    summary += f" in {count_noun(requests, 'request')}." if requests else "."
    unknown = facts.train.kinds["unknown"]
    if unknown:
        summary += f" The origin of {unknown} training records is unknown."
    return summary


def _add_headlines(report: Report, facts: ReportInput) -> None:
    spent = facts.report["spent"]
    train, held_out = facts.train, facts.held_out
    tiles = [
        Metric("training records", float(train.count), n=train.count),
        Metric("held-out records", float(held_out.count), n=held_out.count),
    ]
    if spent["asks"]:
        num_kept = train.kinds["synthetic"] + held_out.kinds["synthetic"]
        tiles += [
            Metric("requests", float(spent["asks"])),
            Metric("tokens", float(spent["tokens"])),
            Metric("records kept per request", num_kept / spent["asks"], n=spent["asks"]),
        ]
    if spent["money"]:
        tiles.append(Metric("money", float(spent["money"])))
    for tile in tiles:
        report.add(replace(tile, note="counted"), is_headline=True)
    prices = spent.get("prices")
    priced = (
        f" A million tokens of prompts cost {prices['input']:g}, of completions "
        f"{prices['output']:g}."
        if prices
        else ""
    )
    if any(isinstance(check, ModelScoredFilter) for check in facts.checks):
        priced += " Requests of filters to their own models are not counted."
    report.section(
        "Counts and cost",
        "Results from a cache are counted too: the figures are the cost of the records, not of "
        f"this session.{priced}",
        metrics=[report.metrics[tile.name] for tile in tiles],
    )


def _add_steps(report: Report, facts: ReportInput) -> None:
    for split in ("train", "held_out"):
        side = facts.report["splits"].get(split, {})
        rows, plotted = _make_step_rows(side, facts.report.get("steps", {}))
        if not rows or not any(value for _, value in plotted):
            continue
        columns = ("step", "from", "inputs", "outputs", "share", "requests", "tokens", "rejected")
        side_name = split.replace("_", " ")
        report.section(
            f"Yield by step: {side_name}",
            plot=_plot_bars(f"Output records of each step, {side_name} side", plotted),
            table=Table("Inputs and outputs of each step", columns, tuple(rows)),
        )


def _make_step_rows(
    side: Mapping[str, Any], outline: Mapping[str, Any]
) -> tuple[list[tuple[str, ...]], list[tuple[str, int]]]:
    """Return the table rows of the steps and their numbers of outputs; a chain has two steps."""
    steps = side.get("steps")
    if steps is None:
        if not side.get("units"):
            return [], []
        rejected = side["dropped"]
        failed = sum(count for name, count in rejected.items() if name.startswith("generator"))
        steps = {
            "ask": {
                **side,
                "taken": side["units"],
                "given": side["parsed"],
                "dropped": {"": failed},
            },
            "keep": {
                "taken": side["parsed"],
                "given": side["kept"],
                "dropped": {"": sum(rejected.values()) - failed},
            },
        }
        start = "seeds" if side.get("seeds") else "nothing"
        outline = {"ask": {"from": [start]}, "keep": {"from": ["ask"]}}
    rows: list[tuple[str, ...]] = []
    plotted: list[tuple[str, int]] = []
    for name, step in steps.items():
        num_in, num_out = step.get("taken", 0), step.get("given", 0)
        tokens = step.get("prompt_tokens", 0) + step.get("completion_tokens", 0)
        rows.append(
            (
                name,
                ", ".join(outline.get(name, {}).get("from", ())),
                str(num_in),
                str(num_out),
                f"{num_out / num_in:.0%}" if num_in else "–",
                str(step.get("asked") or "–"),
                str(tokens or "–"),
                str(sum(step.get("dropped", {}).values()) or "–"),
            )
        )
        plotted.append((name, num_out))
    return rows, plotted


def _add_reasons(report: Report, rejections: RejectionStats) -> None:
    counts = rejections.counts
    if not counts:
        report.section("Rejected records", "No record was rejected.")
        return
    most = counts.most_common(_REASONS)
    remaining = counts.total() - sum(count for _, count in most)
    text = (
        f"{remaining} more were rejected for {len(counts) - len(most)} rarer reasons."
        if remaining
        else ""
    )
    plot = _plot_bars(
        "Rejected rows by reason", [(name.rpartition(": ")[2], count) for name, count in most]
    )
    total = counts.total()
    rows = tuple((*name.split(": ", 1), str(count), f"{count / total:.1%}") for name, count in most)
    table = Table("Rejections by method and reason", ("by", "reason", "rows", "share"), rows)
    report.section("Rejected records", text, plot=plot, table=table)


def _add_examples(report: Report, facts: ReportInput, rejections: RejectionStats) -> None:
    if examples := facts.train.examples.get_sorted():
        rows = [
            (_clip(get_last_instruction(record) or "–"), _clip(get_last_answer(record)))
            for record in examples
        ]
        report.section(
            "Examples of kept records",
            table=Table("Selected by hash", ("question", "answer"), tuple(rows)),
        )
    counts = rejections.counts
    reasons = sorted(counts, key=lambda reason: (-counts[reason], reason))[:_REASONS]
    rejected_rows = [
        (reason, _format_score(rejected), _clip(summarize_rejected(rejected)))
        for reason in reasons
        for rejected in rejections.examples(reason)
    ]
    if rejected_rows:
        report.section(
            "Examples of rejected records",
            "For all: stillroom synth drops RUN.",
            table=Table(
                "At most three per reason", ("reason", "score", "row"), tuple(rejected_rows)
            ),
        )


def _add_contamination(report: Report, facts: ReportInput, rejections: RejectionStats) -> None:
    checks = {
        check.method_name(): tuple(map(str, getattr(check, "against", ())))
        for check in facts.checks
        if check.method_name() in {"decontaminate", "reworded"}
    }
    named = sorted({Path(path).name for against in checks.values() for path in against})
    if checks and not facts.held_out.count and not named:
        report.section(
            "Contamination",
            "Not checked: no record is held out, and no filter names test items (against).",
        )
        return
    if not checks:
        report.section(
            "Contamination",
            "Not checked: no step has the filter decontaminate or reworded. For existing "
            "records: stillroom run synth.decontaminate.",
        )
        return
    text = (
        f"{count_noun(facts.held_out.count, 'held-out record')}"
        + (f" and the items of {', '.join(named)}" if named else "")
        + f" were searched for in every training record; "
        f"{count_noun(rejections.held_out, 'row')} matched."
        + ("" if "reworded" in checks else " Rewordings were not: use the filter reworded.")
    )
    rows = tuple(
        (_clip(match.against), f"{match.score:.2f}", _clip(summarize_rejected(match)))
        for match in rejections.found
    )
    table = Table("Items found", ("item", "share", "row"), rows) if rows else None
    report.section("Contamination", text, table=table)


def _add_rights(report: Report, facts: ReportInput) -> None:
    licenses, origins = facts.train.licenses, facts.train.kinds
    rows = tuple((name, str(count)) for name, count in licenses.most_common())
    origin_counts = ", ".join(f"{count} {kind}" for kind, count in sorted(origins.items()))
    report.section(
        "Origin and licenses",
        f"Of the training records: {origin_counts}.",
        table=Table("Licenses of the training records", ("license", "records"), rows),
    )
    if facts.teachers:
        terms_by_teacher = {teacher: find_model_terms(teacher) for teacher in facts.teachers}
        report.section(
            "Terms of the teachers",
            "A reminder to read them, not advice.",
            table=Table(
                "Conditions of the makers for models trained on outputs",
                ("teacher", "license", "outputs", "conditions"),
                tuple(
                    (teacher, terms.license or "–", terms.bound, terms.says)
                    for teacher, terms in terms_by_teacher.items()
                ),
            ),
        )


def _add_judges(report: Report, facts: ReportInput) -> None:
    rows = [
        (split.replace("_", " "), step, name, str(value))
        for split, split_report in facts.report["splits"].items()
        for step, filters in _by_step(split_report.get("measured", {})).items()
        for name, value in filters
    ]
    if rows:
        table = Table(
            "Summaries of model-scored filters", ("side", "filter", "figure", "value"), tuple(rows)
        )
        report.section("Model-scored filters", table=table)


def _by_step(measured: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Return values by filter, or by step and filter, as pairs of name and value."""
    figures: dict[str, list[tuple[str, Any]]] = {}
    for name, value in measured.items():
        for key, part in value.items():
            if isinstance(part, Mapping):
                figures.setdefault(f"{name}/{key}", []).extend(part.items())
            else:
                figures.setdefault(name, []).append((key, part))
    return figures


def _format_score(rejected: RejectedRecord) -> str:
    if rejected.limit is not None:
        return f"{rejected.score:.3g} (bound {rejected.limit:.3g})"
    return f"{rejected.score:.3g}" if rejected.score else "–"


def _clip(text: str) -> str:
    line = " ".join(text[: 8 * _SHOWN].split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def add_diversity(report: Report, diversity: DiversityMetrics | None) -> None:
    """Add the diversity of the training records relative to the seed texts."""
    if diversity is None:
        report.section(
            "Diversity", f"Fewer than {MIN_DIVERSITY_WORDS} words: too little to measure."
        )
        return
    text = (
        f"Means of draws of {diversity.budget} words, with the middle 95 % of the draws. "
        "High self_bleu, compression and repeated mean little diversity; a tail below 1 means that "
        "rare words are lost, above 1 that records repeat their seed texts."
    )
    metrics = [
        replace(diversity.sides[side][figure], name=f"{figure}/{side}")
        for figure in diversity.sides["generated"]
        for side in diversity.sides
    ]
    shares = [metric for metric in metrics if not metric.name.startswith("compression")]
    report.section(
        "Diversity",
        text,
        metrics=metrics,
        plot=Plot.of("Diversity metrics that are shares", shares),
    )


def add_coverage(report: Report, stats: RecordStats, documents: int) -> None:
    """Add the share of documents with training records, and the records' forms."""
    if not stats.documents:
        return
    if documents:
        _add_documents(report, stats.documents, documents)
    _add_forms(report, stats)


def _add_documents(report: Report, per_document: Mapping[str, int], total: int) -> None:
    bounds = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 10**9))
    plotted = [("no record", total - len(per_document))] if total >= len(per_document) else []
    for low, high in bounds:
        label = f"{low} to {high}" if high < 10**9 else f"{low} or more"
        count = sum(low <= number <= high for number in per_document.values())
        plotted.append((str(low) if low == high else label, count))
    report.section(
        "Coverage of the seed documents",
        f"{len(per_document)} of {max(total, len(per_document))} documents of the training side "
        "have a record.",
        plot=_plot_bars("Documents by number of records", plotted),
    )


def _add_forms(report: Report, stats: RecordStats) -> None:
    """Add the distributions of answer lengths and of question openings."""
    counts = [
        (_name_bin(number), stats.lengths[number]) for number in range(max(stats.lengths) + 1)
    ]
    report.section(
        "Length of answers", plot=_plot_bars("Records by answer length in words", counts)
    )
    if openings := stats.openings:
        report.section(
            "Question openings",
            f"{len(openings)} openings of three words among "
            f"{count_noun(openings.total(), 'question')}.",
            plot=_plot_bars("Most common openings", openings.most_common(_MAX_OPENINGS)),
        )


def _plot_bars(title: str, counts: Sequence[tuple[str, float]]) -> Plot:
    labels = tuple(label for label, _ in counts)
    return Plot(title, labels, tuple(float(count) for _, count in counts), kind="bars")


def _name_bin(number: int) -> str:
    if number == 0:
        return f"below {LENGTH_BINS[0]}"
    if number == len(LENGTH_BINS):
        return f"{LENGTH_BINS[-1]} or more"
    return f"{LENGTH_BINS[number - 1]} to {LENGTH_BINS[number] - 1}"
