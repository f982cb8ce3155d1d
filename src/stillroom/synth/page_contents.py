"""What the records of a run are like: how varied, of which documents, how long, how begun."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from stillroom.evaluate.plots import Plot
from stillroom.evaluate.report import Report
from stillroom.synth.comparing import LEAST_WORDS, Figures
from stillroom.synth.tallying import LENGTHS, Tally

__all__ = ["add_coverage", "add_variety"]

_OPENINGS = 10


def add_variety(report: Report, found: Figures | None) -> None:
    """Show how varied the training records are beside the texts that were started from."""
    if found is None:
        report.section("Variety", f"Fewer than {LEAST_WORDS} words: too little to measure.")
        return
    text = (
        f"Means of draws of {found.budget} words, with the middle 95 % of the draws. High "
        "self_bleu, compression and repeated say little variety; a tail below 1 says that rare "
        "words are gone, above 1 that records repeat the very texts they were made of."
    )
    metrics = [
        replace(metric, name=f"{figure}/{side}")
        for figure in found.sides["made"]
        for side in found.sides
        for metric in [found.sides[side][figure]]
    ]
    shares = [one for one in metrics if not one.name.startswith("compression")]
    report.section(
        "Variety",
        text,
        metrics=metrics,
        plot=Plot.of("Figures of variety that are shares", shares),
    )


def add_coverage(report: Report, made: Tally, documents: int) -> None:
    """Show how many of so many documents the training records are of, and their forms."""
    if not made.documents:
        return
    if documents:
        _add_documents(report, made.documents, documents)
    _add_forms(report, made)


def _add_documents(report: Report, per_document: Mapping[str, int], total: int) -> None:
    bounds = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 10**9))
    labels, values = [], []
    if total >= len(per_document):
        labels.append("no record")
        values.append(float(total - len(per_document)))
    for low, high in bounds:
        label = (
            str(low) if low == high else f"{low} to {high}" if high < 10**9 else f"{low} or more"
        )
        labels.append(label)
        values.append(float(sum(low <= n <= high for n in per_document.values())))
    report.section(
        "Coverage of what was started from",
        f"{len(per_document)} of {max(total, len(per_document))} documents of the training side "
        "have a record.",
        plot=Plot(
            "Documents by how many records they gave", tuple(labels), tuple(values), kind="bars"
        ),
    )


def _add_forms(report: Report, made: Tally) -> None:
    """Show how long answers are and how questions begin."""
    lengths = made.lengths
    bins = range(max(lengths) + 1)
    report.section(
        "Length of answers",
        plot=Plot(
            "Records by the words of their answer",
            tuple(_bin_name(at) for at in bins),
            tuple(float(lengths[at]) for at in bins),
            kind="bars",
        ),
    )
    openings = made.openings
    if openings:
        most = openings.most_common(_OPENINGS)
        report.section(
            "How questions begin",
            f"{len(openings)} beginnings of three words among {openings.total()} questions.",
            plot=Plot(
                "The commonest beginnings",
                tuple(name for name, _ in most),
                tuple(float(count) for _, count in most),
                kind="bars",
            ),
        )


def _bin_name(at: int) -> str:
    if at == 0:
        return f"below {LENGTHS[0]}"
    return (
        f"{LENGTHS[at - 1]} or more"
        if at == len(LENGTHS)
        else f"{LENGTHS[at - 1]} to {LENGTHS[at] - 1}"
    )
