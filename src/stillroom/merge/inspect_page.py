"""The report of an inspection: report.json and report.html, and every tensor in inspection.json."""

from __future__ import annotations

import copy
import json
import math
from itertools import combinations
from pathlib import Path
from statistics import fmean

from stillroom.evaluate.metrics import Metric
from stillroom.evaluate.page import draw_page
from stillroom.evaluate.report import Report, Table
from stillroom.jobs import atomic_write
from stillroom.merge.inspect import Facts, Inspection, place_of
from stillroom.merge.inspect_plots import Line, draw_lines, draw_map
from stillroom.merge.path import LossPath
from stillroom.merge.reading import new_folder, write_json

__all__ = ["draw_inspection", "make_report", "write_inspection"]

_AGREE, _CANCEL, _SIZE, _PATH = (
    "Where they agree",
    "Where they cancel",
    "How far each moved",
    "The way from one to the other",
)


def write_inspection(inspection: Inspection, folder: Path, *, overwrite: bool = False) -> Path:
    """Write the page, the report and every number; return the page's path.

    Raises:
        DataError: If ``folder`` exists.
        ResourceError: If the disk is full.
    """
    report = make_report(inspection)
    with new_folder(folder, overwrite=overwrite) as work:
        write_json(work / "inspection.json", inspection.to_json())
        with atomic_write(work / "report.json") as file:
            json.dump(report.to_json(), file, ensure_ascii=False, indent=1, allow_nan=False)
            file.write("\n")
        with atomic_write(work / "report.html") as file:
            file.write(draw_inspection(inspection))
    return folder / "report.html"


def draw_inspection(inspection: Inspection) -> str:
    """Return the page: the report's, with the figures under their headings."""
    report = copy.deepcopy(make_report(inspection).to_json())
    figures = _draw_figures(inspection)
    for number, section in enumerate(report["sections"]):
        if section["title"] in figures:
            section["text"] += f"\n\n[figure {number}]"
    page = draw_page(report)
    for number, section in enumerate(report["sections"]):
        if section["title"] in figures:
            page = page.replace(f"<p>[figure {number}]</p>", figures[section["title"]], 1)
    return page


def make_report(inspection: Inspection) -> Report:
    """Return the report without its figures."""
    whole, names = inspection.whole, inspection.parents
    report = Report(
        f"What {', '.join(names[:-1])} and {names[-1]} changed",
        f"How {len(names)} models differ from {inspection.base}, and whether their changes get "
        "along. Every number is over all elements; nothing was sampled.",
    )
    pairs = list(combinations(range(len(names)), 2))
    for i, j in pairs:
        tail = "" if len(pairs) == 1 else f"/{names[i]}/{names[j]}"
        report.add(
            Metric(f"cosine of task vectors{tail}", whole.cosine(i, j), n=whole.size),
            is_headline=True,
        )
    report.add(Metric("cancels in the sum", whole.cancelling, n=whole.size), is_headline=True)
    for path in inspection.paths:
        tail = "" if len(inspection.paths) == 1 else f"/{'/'.join(path.names)}"
        report.add(
            Metric(f"barrier{tail}", path.barrier, n=path.losses[0].n, unit="nats/token"),
            is_headline=True,
        )
    for path in inspection.paths:
        report.section(f"{_PATH}: {' to '.join(path.names)}", _say_path(path))
    report.section(
        _AGREE,
        "The cosine of the task vectors, by layer and module: 1 where models learned the same, 0 "
        "where they changed different directions, below 0 where they pull apart.",
        table=_pair_table(inspection),
    )
    report.section(
        _CANCEL,
        "The share of all magnitude that vanishes when the task vectors are added. Trimming, sign "
        "election or lower weights in these places keep more of each model.",
        table=_place_table(inspection),
    )
    report.section(_SIZE, "The length of each task vector over that of the base, by layer.")
    if inspection.skipped:
        report.section("Not looked at", "Not floats: " + ", ".join(inspection.skipped))
    return report


def _draw_figures(inspection: Inspection) -> dict[str, str]:
    names = inspection.parents
    pairs = list(combinations(range(len(names)), 2))
    rows, columns, cells = _grid(inspection)
    maps = []
    for i, j in pairs:
        values = [[cell.cosine(i, j) if cell else math.nan for cell in row] for row in cells]
        maps.append(draw_map(f"Cosine of {names[i]} and {names[j]}.", rows, columns, values))
    figures = {_AGREE: "".join(maps)}
    values = [[cell.cancelling if cell else math.nan for cell in row] for row in cells]
    figures[_CANCEL] = draw_map(
        "Share of magnitude that cancels in the sum.", rows, columns, values, is_fight=True
    )
    layers = {
        name: facts for name, facts in inspection.by_layer().items() if name.startswith("layer ")
    }
    positions = [float(name.removeprefix("layer ")) for name in layers]
    lines = [
        Line(name, tuple(facts.relative(at) for facts in layers.values()))
        for at, name in enumerate(names)
    ]
    figures[_SIZE] = draw_lines(
        "Length of the task vector over that of the base.",
        positions,
        lines,
        axis="layer",
        is_share=True,
        from_zero=True,
    )
    for path in inspection.paths:
        figures[f"{_PATH}: {' to '.join(path.names)}"] = _draw_path(path)
    return figures


def _draw_path(path: LossPath) -> str:
    first, last = path.losses[0].value, path.losses[-1].value
    straight = tuple((1 - share) * first + share * last for share in path.shares)
    measured = Line(
        "measured, with 95 % interval",
        tuple(loss.value for loss in path.losses),
        tuple(loss.low for loss in path.losses),
        tuple(loss.high for loss in path.losses),
    )
    return draw_lines(
        f"Loss (nats a token) from {path.names[0]} (0) to {path.names[1]} (1).",
        path.shares,
        [measured, Line("line between the ends", straight, is_dashed=True)],
        axis=f"share of {path.names[1]}",
    )


def _say_path(path: LossPath) -> str:
    best, share = path.losses[path.best], path.shares[path.best]
    inside = 0 < path.best < len(path.losses) - 1
    return (
        f"The barrier is {path.barrier:.4f} nats a token: how far the worst point lies above the "
        f"line between the ends. The least loss is {best.value:.4f} at share {share:g}"
        + (", between the models." if inside else ", one of the models itself.")
        + " All points are measured on the same records, so that they differ by less than their "
        "intervals say."
    )


def _grid(inspection: Inspection) -> tuple[list[str], list[str], list[list[Facts | None]]]:
    """Return layers, modules, and the facts of each pair of them; None where there is no tensor."""
    found: dict[tuple[str, str], list[Facts]] = {}
    columns: dict[str, None] = {}
    for name, facts in sorted(inspection.tensors.items()):
        layer, module = place_of(name)
        found.setdefault((layer, module), []).append(facts)
        columns.setdefault(module)
    ordered = list(inspection.by_layer())
    rows = [name for name in ordered if name.startswith("layer ")]
    inner = [name for name in columns if any((row, name) in found for row in rows)]
    cells = [[_sum_or_none(found.get((row, name))) for name in inner] for row in rows]
    return rows, inner, cells


def _sum_or_none(facts: list[Facts] | None) -> Facts | None:
    return Facts.sum_of(facts) if facts else None


def _pair_table(inspection: Inspection) -> Table:
    rows = []
    for pair in inspection.whole.to_json()["pairs"]:
        i, j = pair["parents"]
        shown = [pair[key] for key in ("cosine", "sign_conflict", "kept_overlap", "kept_conflict")]
        rows.append(
            (
                f"{inspection.parents[i]} and {inspection.parents[j]}",
                *("–" if value is None else f"{value:.3f}" for value in shown),
            )
        )
    kept = f"{inspection.density:.0%}"
    return Table(
        f"Pairs of models, over all tensors; the last two columns look at the largest {kept} of "
        "each task vector only, as trimming does",
        ("pair", "cosine", "signs apart", f"largest {kept} in common", "of those apart"),
        tuple(rows),
    )


def _place_table(inspection: Inspection) -> Table:
    names = inspection.parents
    pairs = list(combinations(range(len(names)), 2))
    listed = sorted(
        inspection.by_module().items(), key=lambda item: item[1].cancelling, reverse=True
    )
    rows = []
    for name, facts in listed:
        cosines = [facts.cosine(i, j) for i, j in pairs]
        finite = [cosine for cosine in cosines if math.isfinite(cosine)]
        rows.append(
            (
                name,
                f"{facts.size:,}",
                f"{fmean(finite):.3f}" if finite else "–",
                f"{facts.cancelling:.1%}",
                *(f"{facts.relative(at):.2%}" for at in range(len(names))),
            )
        )
    return Table(
        "By kind of module, what cancels most first; lengths are over the base's",
        ("module", "numbers", "cosine", "cancels", *(f"length {name}" for name in names)),
        tuple(rows),
    )
