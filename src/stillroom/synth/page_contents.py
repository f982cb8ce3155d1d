"""What the records of a run are like: how varied, of which documents, how long, how begun.

Figures of variety are those of the collapse monitor, at equal budgets of words for what was started
from and what was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stillroom.evaluate.diversity import find_tail, measure_diversity
from stillroom.evaluate.plots import Plot
from stillroom.evaluate.report import Report
from stillroom.synth.method import derive_seed
from stillroom.synth.tallying import LENGTHS, SAMPLE, Lowest, Tally
from stillroom.text.normalize import words

__all__ = ["add_coverage", "add_variety"]

_BUDGET = 5000
_DRAWS = 10
_LEAST_WORDS = 200
_OPENINGS = 10


def add_variety(report: Report, made: Tally, seeds: Sequence[str]) -> None:
    """Show how varied the training records are beside the texts that were started from."""
    sides = {"made": made.texts}
    if seeds:
        sides["started from"] = _sample(seeds)
    cut = {name: [words(text) for text in texts] for name, texts in sides.items()}
    sizes = {name: sum(map(len, found)) for name, found in cut.items()}
    if min(sizes.values()) < _LEAST_WORDS:
        report.section("Variety", f"Fewer than {_LEAST_WORDS} words: too little to measure.")
        return
    budget = min(_BUDGET, int(0.5 * min(sizes.values())))
    tail, mass = find_tail(cut=cut["started from"]) if seeds else (frozenset[str](), 0.0)
    measured = {
        name: measure_diversity(
            texts, budget=budget, tail=tail, tail_mass=mass, draws=_DRAWS, cut=cut[name]
        )
        for name, texts in sides.items()
    }
    if "started from" in measured and "tail" in measured["started from"]:
        half = measure_diversity(
            sides["started from"][1::2],
            budget=budget,
            tail=tail,
            tail_mass=mass,
            draws=_DRAWS,
            only=frozenset({"tail"}),
            cut=cut["started from"][1::2],
        )
        measured["started from"] |= half
    text = (
        f"Means of draws of {budget} words, with the middle 95 % of the draws. High self_bleu, "
        "compression and repeated say little variety; a tail below 1 says that rare words are "
        "gone, above 1 that records repeat the very texts they were made of."
    )
    metrics = [
        replace(metric, name=f"{figure}/{side}")
        for figure in measured["made"]
        for side in sides
        for metric in [measured[side][figure]]
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


def _sample(texts: Sequence[str]) -> list[str]:
    """Return at most so many texts, chosen by hash, so that a page takes seconds."""
    chosen: Lowest[str] = Lowest(SAMPLE)
    for text in texts:
        chosen.add(derive_seed(text), text)
    return chosen.drawn()


def _bin_name(at: int) -> str:
    if at == 0:
        return f"below {LENGTHS[0]}"
    return (
        f"{LENGTHS[at - 1]} or more"
        if at == len(LENGTHS)
        else f"{LENGTHS[at - 1]} to {LENGTHS[at] - 1}"
    )
