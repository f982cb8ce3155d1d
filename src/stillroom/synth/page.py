"""The page of a run: yield by step, what fell and why, variety, contamination, licenses, terms.

Everything is taken from the report and the records; no model is asked. Figures of variety are those
of the collapse monitor, at equal budgets of words for what was started from and what was made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stillroom.evaluate.diversity import find_tail, measure_diversity
from stillroom.evaluate.metrics import Metric
from stillroom.evaluate.page import draw_page
from stillroom.evaluate.plots import Plot
from stillroom.evaluate.report import Report, Table
from stillroom.records import Record
from stillroom.synth.harvest import Dropped
from stillroom.synth.method import derive_seed
from stillroom.synth.terms import find_terms
from stillroom.synth.turns import answer_of, instruction_of, whole_text
from stillroom.text.normalize import words

__all__ = ["PAGE", "Told", "draw_run", "is_page"]

PAGE = "report.html"

_SHOWN = 240
_REASONS = 12
_EXAMPLES = 3
_KEPT_EXAMPLES = 6
_SAMPLE = 2000
_BUDGET = 5000
_LEAST_WORDS = 200
_OPENINGS = 10
_BINS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, slots=True)
class Told:
    """What a page is drawn of.

    ``report`` is the run's report.json, ``seeds`` the texts that were started from, ``teachers``
    the references of the models that wrote, ``checks`` the names of all filters.
    """

    report: Mapping[str, Any]
    train: Sequence[Record]
    held_out: Sequence[Record]
    dropped: Sequence[Dropped]
    seeds: Sequence[str] = ()
    teachers: Sequence[str] = ()
    checks: frozenset[str] = frozenset()


def is_page(path: str) -> bool:
    """Return whether a file is the page: it names places, so it is no part of the digest."""
    return path == f"output/{PAGE}"


def draw_run(told: Told) -> str:
    """Return the page of a run, as HTML that needs nothing else."""
    report = Report("Records of a run", _summarize(told))
    _add_headlines(report, told)
    _add_steps(report, told)
    _add_reasons(report, told)
    _add_examples(report, told)
    _add_variety(report, told)
    _add_coverage(report, told)
    _add_contamination(report, told)
    _add_rights(report, told)
    _add_judges(report, told)
    return draw_page(report.to_json())


def _summarize(told: Told) -> str:
    kept, fell = len(told.train) + len(told.held_out), len(told.dropped)
    asked = told.report["spent"]["asks"]
    said = f"{kept} records kept, {len(told.held_out)} of them held out; {fell} rows fell"
    said += f" in {asked} asks." if asked else "."
    unknown = sum(record.origin.kind == "unknown" for record in told.train)
    if unknown:
        said += f" The origin of {unknown} training records is unknown."
    return said


def _add_headlines(report: Report, told: Told) -> None:
    spent = told.report["spent"]
    tiles = [
        Metric("training records", float(len(told.train)), n=len(told.train)),
        Metric("held-out records", float(len(told.held_out)), n=len(told.held_out)),
    ]
    if spent["asks"]:
        kept = sum(record.origin.kind == "synthetic" for record in (*told.train, *told.held_out))
        tiles += [
            Metric("asks", float(spent["asks"])),
            Metric("tokens", float(spent["tokens"])),
            Metric("records kept for an ask", kept / spent["asks"], n=spent["asks"]),
        ]
    if spent["money"]:
        tiles.append(Metric("money", float(spent["money"])))
    for tile in tiles:
        report.add(replace(tile, note="counted"), is_headline=True)
    prices = told.report.get("prices")
    priced = f" Prices a million tokens: {prices}." if prices else ""
    report.section(
        "Counts and cost",
        "What came from a shelf or a cache is counted too: it is what the records cost, not what "
        f"this sitting cost.{priced}",
        metrics=[report.metrics[tile.name] for tile in tiles],
    )


def _add_steps(report: Report, told: Told) -> None:
    for split in ("train", "held_out"):
        side = told.report["splits"].get(split, {})
        rows, plotted = _yield_rows(side, told.report.get("steps", {}))
        if not rows or not any(value for _, value in plotted):
            continue
        columns = ("step", "from", "took", "gave", "share", "asked", "tokens", "fell")
        plot = Plot(
            f"Records that each step gave, {split.replace('_', ' ')} side",
            tuple(name for name, _ in plotted),
            tuple(value for _, value in plotted),
            kind="bars",
        )
        report.section(
            f"Yield by step: {split.replace('_', ' ')}",
            plot=plot,
            table=Table("What went into each step and what came out", columns, tuple(rows)),
        )


def _yield_rows(
    side: Mapping[str, Any], outline: Mapping[str, Any]
) -> tuple[list[tuple[str, ...]], list[tuple[str, float]]]:
    """Return the rows of the steps, and what is plotted; a chain is two steps."""
    steps = side.get("steps")
    if steps is None:
        if not side.get("units"):
            return [], []
        fell = side["dropped"]
        lost = sum(count for name, count in fell.items() if name.startswith("generator"))
        steps = {
            "ask": {**side, "taken": side["units"], "given": side["parsed"], "dropped": {"": lost}},
            "keep": {
                "taken": side["parsed"],
                "given": side["kept"],
                "dropped": {"": sum(fell.values()) - lost},
            },
        }
        outline = {"ask": {"from": ["seeds"]}, "keep": {"from": ["ask"]}}
    rows: list[tuple[str, ...]] = []
    plotted: list[tuple[str, float]] = []
    for name, step in steps.items():
        taken, given = step.get("taken", 0), step.get("given", 0)
        tokens = step.get("prompt_tokens", 0) + step.get("completion_tokens", 0)
        rows.append(
            (
                name,
                ", ".join(outline.get(name, {}).get("from", ())),
                str(taken),
                str(given),
                f"{given / taken:.0%}" if taken else "–",
                str(step.get("asked") or "–"),
                str(tokens or "–"),
                str(sum(step.get("dropped", {}).values()) or "–"),
            )
        )
        plotted.append((name, float(given)))
    return rows, plotted


def _add_reasons(report: Report, told: Told) -> None:
    counts = Counter(_name(drop) for drop in told.dropped)
    if not counts:
        report.section("What fell", "Nothing fell.")
        return
    most = counts.most_common(_REASONS)
    rest = counts.total() - sum(count for _, count in most)
    text = f"{rest} more fell for {len(counts) - len(most)} rarer reasons." if rest else ""
    plot = Plot(
        "Rows by the reason they fell for",
        tuple(name.rpartition(": ")[2] for name, _ in most),
        tuple(float(count) for _, count in most),
        kind="bars",
    )
    total = counts.total()
    rows = tuple((*name.split(": ", 1), str(count), f"{count / total:.1%}") for name, count in most)
    table = Table("By whom and why", ("by", "reason", "rows", "share"), rows)
    report.section("What fell", text, plot=plot, table=table)


def _add_examples(report: Report, told: Told) -> None:
    shown = sorted(told.train, key=lambda record: derive_seed(record.id))[:_KEPT_EXAMPLES]
    if shown:
        rows = tuple((_clip(instruction_of(one) or "–"), _clip(answer_of(one))) for one in shown)
        report.section(
            "Kept, for example", table=Table("Drawn by hash", ("asked", "answered"), rows)
        )
    by_reason: dict[str, list[Dropped]] = {}
    for drop in told.dropped:
        by_reason.setdefault(_name(drop), []).append(drop)
    rows_fell = []
    for name in sorted(by_reason, key=lambda one: (-len(by_reason[one]), one))[:_REASONS]:
        held = sorted(by_reason[name], key=lambda one: derive_seed(one.unit, _says(one)))
        rows_fell += [(name, _measure(one), _clip(_says(one))) for one in held[:_EXAMPLES]]
    if rows_fell:
        table = Table(
            "At most three of each reason", ("reason", "measured", "row"), tuple(rows_fell)
        )
        report.section("Fell, for example", "All of them: stillroom synth drops RUN.", table=table)


def _add_variety(report: Report, told: Told) -> None:
    made = [whole_text(record) for record in told.train if record.origin.kind == "synthetic"]
    sides = {"made": _sample(made or [whole_text(record) for record in told.train])}
    if told.seeds:
        sides["started from"] = _sample(told.seeds)
    sizes = {name: sum(len(words(text)) for text in texts) for name, texts in sides.items()}
    if min(sizes.values()) < _LEAST_WORDS:
        report.section("Variety", f"Fewer than {_LEAST_WORDS} words: too little to measure.")
        return
    budget = min(_BUDGET, int(0.5 * min(sizes.values())))
    tail, mass = find_tail(sides["started from"]) if told.seeds else (frozenset[str](), 0.0)
    measured = {
        name: measure_diversity(texts, budget=budget, tail=tail, tail_mass=mass)
        for name, texts in sides.items()
    }
    if "started from" in measured and "tail" in measured["started from"]:
        half = measure_diversity(
            sides["started from"][1::2], budget=budget, tail=tail, tail_mass=mass
        )
        measured["started from"]["tail"] = half["tail"]
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


def _add_coverage(report: Report, told: Told) -> None:
    records = [record for record in told.train if record.origin.kind == "synthetic"]
    if not records:
        return
    per_document = Counter(str(record.fields.get("document_id", record.id)) for record in records)
    total = told.report["splits"]["train"].get("documents", 0)
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
    lengths = Counter(_bin(len(words(answer_of(record)))) for record in records)
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
    openings = Counter(
        " ".join(instruction_of(record).split()[:3]) for record in records if instruction_of(record)
    )
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


def _add_contamination(report: Report, told: Told) -> None:
    if "decontaminate" not in told.checks:
        report.section(
            "Contamination",
            "Not checked: no step has the filter decontaminate. For named benchmarks and "
            "rewordings: stillroom synth decontaminate.",
        )
        return
    found = [drop for drop in told.dropped if drop.filter == "decontaminate"]
    text = (
        f"{len(told.held_out)} held-out records were looked for in every training record; "
        f"{len(found)} rows held one. Rewordings need an embedder: stillroom synth decontaminate."
    )
    rows = tuple((_clip(one.against), f"{one.score:.2f}", _clip(_says(one))) for one in found[:10])
    table = Table("Held-out items found", ("item", "share", "row"), rows) if rows else None
    report.section("Contamination", text, table=table)


def _add_rights(report: Report, told: Told) -> None:
    licenses = Counter(record.origin.license or "nobody tells" for record in told.train)
    origins = Counter(record.origin.kind for record in told.train)
    rows = tuple((name, str(count)) for name, count in licenses.most_common())
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(origins.items()))
    report.section(
        "Origin and licenses",
        f"Of the training records: {said}.",
        table=Table("Licenses of the training records", ("license", "records"), rows),
    )
    if told.teachers:
        terms = [(teacher, find_terms(teacher)) for teacher in dict.fromkeys(told.teachers)]
        report.section(
            "Terms of the teachers",
            "A reminder to read them, not advice.",
            table=Table(
                "What makers ask of models trained on outputs",
                ("teacher", "license", "outputs", "what they say"),
                tuple((name, one.license or "–", one.bound, one.says) for name, one in terms),
            ),
        )


def _add_judges(report: Report, told: Told) -> None:
    rows = [
        (split.replace("_", " "), step, name, str(value))
        for split, side in told.report["splits"].items()
        for step, filters in _by_step(side.get("measured", {})).items()
        for name, value in filters
    ]
    if rows:
        table = Table(
            "What measuring filters say", ("side", "filter", "what", "value"), tuple(rows)
        )
        report.section("Judges and measures", table=table)


def _by_step(measured: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Return figures by filter, or by step and filter, as pairs of name and value."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for name, value in measured.items():
        for key, part in value.items():
            if isinstance(part, Mapping):
                found.setdefault(f"{name}/{key}", []).extend(part.items())
            else:
                found.setdefault(name, []).append((key, part))
    return found


def _name(drop: Dropped) -> str:
    return f"{f'{drop.step} / ' if drop.step else ''}{drop.filter}: {drop.reason}"


def _says(drop: Dropped) -> str:
    if drop.record is None:
        return drop.text
    return " | ".join(one.content for one in drop.record.messages)


def _measure(drop: Dropped) -> str:
    if not drop.score and drop.limit is None:
        return "–"
    return f"{drop.score:.3g}" + (f" (bound {drop.limit:.3g})" if drop.limit is not None else "")


def _clip(text: str) -> str:
    line = " ".join(text[: 8 * _SHOWN].split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def _sample(texts: Sequence[str]) -> list[str]:
    """Return at most so many texts, chosen by hash, so that a page takes seconds."""
    if len(texts) <= _SAMPLE:
        return list(texts)
    return sorted(texts, key=lambda text: derive_seed(text))[:_SAMPLE]


def _bin(count: int) -> int:
    return sum(count >= edge for edge in _BINS)


def _bin_name(at: int) -> str:
    if at == 0:
        return f"below {_BINS[0]}"
    return f"{_BINS[at - 1]} or more" if at == len(_BINS) else f"{_BINS[at - 1]} to {_BINS[at] - 1}"
