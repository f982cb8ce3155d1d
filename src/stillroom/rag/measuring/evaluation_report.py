"""The report of an evaluation of retrieval: figures, differences, times, what was lost where."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stillroom.evaluate import Metric, Plot, Report, Table, say_few
from stillroom.rag.measuring.evaluation import Board, Found, Miss, Unit, summarize_times

if TYPE_CHECKING:
    from stillroom.rag.index import Index
    from stillroom.rag.measuring.evaluation_job import Plan

__all__ = ["report_retrieval"]

_WORST = 20
_SHOWN = 160


def report_retrieval(
    plan: Plan,
    unit: Unit,
    queries: Mapping[str, str],
    index: Index,
    board: Board,
    found: Sequence[Found],
    misses: Mapping[str, Sequence[Miss]],
    timed: str,
    left_out: int = 0,
) -> Report:
    """Return the report.

    Args:
        plan: What was evaluated.
        unit: As what a hit was judged.
        queries: Their texts by id.
        index: Open.
        board: The figures.
        found: What each way found; the first is compared with.
        misses: Of the first way, by query.
        timed: The end of the sentence that says what is timed.
        left_out: For how many queries the corpus row of their own id was not counted as found.
    """
    first = plan.measures[0]
    report = Report(
        "Retrieval",
        f"{len(queries)} judged queries on {len(index)} passages, judged by {unit}. Intervals are "
        "95 % bootstrap over queries; a difference counts where its interval leaves out 0."
        + (
            f" {left_out} of them are rows of the corpus, and no hits of their own."
            if left_out
            else ""
        )
        + f" {say_few(len(queries), 'queries')}".rstrip(),
    )
    for one in found:
        for measure, metric in board.metrics[one.way].items():
            report.add(metric, is_headline=measure == first)
    rows = [metrics[first] for metrics in board.metrics.values()]
    report.section(
        "Ways",
        f"What each way finds. Times are a query's at depth {plan.depth}{timed}",
        table=_table(board, found),
        plot=Plot.of(first, rows, labels=[one.way for one in found]),
    )
    report.section(
        "Where the time goes",
        "Medians over queries, in milliseconds; retrieve holds what is searched and fused. Embed "
        "is next to nothing where the query's vector is remembered.",
        table=_stage_table(found),
    )
    if board.differences:
        report.section(
            f"Against {found[0].way}",
            "On the same queries; p by Fisher's randomization, not corrected for their number.",
            table=_differences(board),
        )
    told = Counter(
        (one.way, text) for one in found for each in one.searched.values() for text in each.notices
    )
    if told:
        rows_told = tuple((way, text, str(count)) for (way, text), count in told.most_common())
        report.section(
            "Done otherwise than asked",
            "The figures hold these queries too.",
            table=Table("notices", ("way", "what", "times"), rows_told),
        )
    stages: Counter[str] = Counter(miss.stage for own in misses.values() for miss in own)
    report.section(
        "Where it is lost",
        f"Relevant ones that are not among the first {plan.k} of {found[0].way}, by the stage that "
        "lost them; queries.jsonl lists every one.",
        table=_worst(queries, board.values[found[0].way][first], misses, stages),
    )
    return report


def _table(board: Board, found: Sequence[Found]) -> Table:
    rows = []
    for one in found:
        cpu = summarize_times([each.cpu_seconds for each in one.searched.values()])
        wall = summarize_times([each.seconds for each in one.searched.values()])
        cells = [_say(board.metrics[one.way][measure]) for measure in board.measures]
        rows.append((one.way, *cells, f"{cpu['median_ms']:.1f}", f"{wall['p95_ms']:.1f}"))
    columns = ("way", *board.measures, "CPU ms (median)", "ms (p95)")
    return Table("figures with 95 % intervals", columns, tuple(rows))


def _stage_table(found: Sequence[Found]) -> Table:
    names: dict[str, None] = {}
    for one in found:
        for each in one.searched.values():
            names.update(dict.fromkeys(each.stage_ms))
    rows = []
    for one in found:
        every = list(one.searched.values())
        spent = ([each.stage_ms[name] for each in every if name in each.stage_ms] for name in names)
        cells = (f"{statistics.median(times):.2f}" if times else "" for times in spent)
        rows.append((one.way, *cells))
    return Table("milliseconds by stage", ("way", *names), tuple(rows))


def _differences(board: Board) -> Table:
    rows = [
        (way, measure, _say(metric, sign=True), f"{p:.4f}")
        for way, by_measure in board.differences.items()
        for measure, (metric, p) in by_measure.items()
    ]
    return Table("way less the first", ("way", "measure", "difference", "p"), tuple(rows))


def _worst(
    queries: Mapping[str, str],
    values: Mapping[str, float],
    misses: Mapping[str, Sequence[Miss]],
    stages: Counter[str],
) -> Table:
    order = sorted(queries, key=lambda query: (values[query], query))
    rows = [
        (query, queries[query][:_SHOWN], f"{values[query]:.3f}", _say_misses(misses[query]))
        for query in order[:_WORST]
        if misses[query]
    ]
    said = ", ".join(f"{count} {stage}" for stage, count in stages.most_common()) or "none"
    return Table(
        f"lost by stage: {said}; worst queries", ("id", "query", "value", "lost"), tuple(rows)
    )


def _say(metric: Metric, *, sign: bool = False) -> str:
    style = "+.4f" if sign else ".4f"
    return f"{metric.value:{style}} [{metric.low:{style}}, {metric.high:{style}}]"


def _say_misses(misses: Sequence[Miss]) -> str:
    return "; ".join(
        f"{miss.name[:60]} ({miss.stage}{f', rank {miss.rank}' if miss.rank else ''})"
        for miss in misses[:3]
    )
