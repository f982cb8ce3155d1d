"""Reports of a model comparison: HTML with heat maps and charts, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

from stillroom.evaluate.charts import LineChart, Series
from stillroom.evaluate.metrics.bootstrap import Metric
from stillroom.evaluate.report import Report, Table, open_templates, render_page
from stillroom.jobs import atomic_write
from stillroom.merge.analysis.comparison import Inspection, LossPath, TensorStats
from stillroom.merge.tensors.storage import atomic_folder, write_json
from stillroom.merge.tensors.structure import locate_tensor

__all__ = ["build_report", "draw_map", "render_inspection", "write_inspection"]

_AGREE, _CANCEL = "Where they agree", "Where they cancel"


def write_inspection(inspection: Inspection, folder: Path, *, overwrite: bool = False) -> Path:
    """Write page, report and statistics; return the page's path.

    Raises:
        DataError: If ``folder`` exists.
        ResourceError: If the disk is full.
    """
    report = build_report(inspection)
    holds = ("inspection.json", "report.json", "report.html")
    with atomic_folder(folder, holds, overwrite=overwrite) as work:
        write_json(work / "inspection.json", inspection.to_json())
        with atomic_write(work / "report.json") as file:
            json.dump(report.to_json(), file, ensure_ascii=False, indent=1, allow_nan=False)
            file.write("\n")
        with atomic_write(work / "report.html") as file:
            file.write(render_inspection(inspection))
    return folder / "report.html"


def render_inspection(inspection: Inspection) -> str:
    """Return the report as HTML, with heat maps under their headings."""
    report = build_report(inspection).to_json()
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
    for number, section in enumerate(report["sections"]):
        if section["title"] in figures:
            section["text"] += f"\n\n[figure {number}]"
    page = render_page(report)
    for number, section in enumerate(report["sections"]):
        if section["title"] in figures:
            page = page.replace(f"<p>[figure {number}]</p>", figures[section["title"]], 1)
    return page


def build_report(inspection: Inspection) -> Report:
    """Return the report without heat maps."""
    total, names = inspection.whole, inspection.parents
    report = Report(
        f"What {', '.join(names[:-1])} and {names[-1]} changed",
        f"How {len(names)} models differ from {inspection.base}, and whether their changes get "
        "along. Every number is over all elements; nothing was sampled.",
    )
    pairs = list(combinations(range(len(names)), 2))
    for i, j in pairs:
        tail = "" if len(pairs) == 1 else f"/{names[i]}/{names[j]}"
        report.add(
            Metric(f"cosine of task vectors{tail}", total.cosine(i, j), n=total.size),
            is_headline=True,
        )
    report.add(Metric("cancels in the sum", total.cancelling, n=total.size), is_headline=True)
    for path in inspection.paths:
        tail = "" if len(inspection.paths) == 1 else f"/{'/'.join(path.names)}"
        report.add(
            Metric(f"barrier{tail}", path.barrier, n=path.losses[0].n, unit="nats/token"),
            is_headline=True,
        )
    for path in inspection.paths:
        report.section(
            f"The way from {' to '.join(path.names)}",
            _format_path(path),
            curves=[_chart_path(path)],
        )
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
    layers = {
        float(name.removeprefix("layer ")): facts
        for name, facts in inspection.by_layer().items()
        if name.startswith("layer ")
    }
    lengths = tuple(
        Series(name, tuple((layer, facts.relative(parent)) for layer, facts in layers.items()))
        for parent, name in enumerate(names)
    )
    caption = "The length of each task vector over that of the base, by layer."
    report.section(
        "How far each moved", caption, curves=[LineChart(caption, "layer", "length", lengths)]
    )
    if inspection.skipped:
        report.section("Not looked at", "Not floats: " + ", ".join(inspection.skipped))
    return report


def _chart_path(path: LossPath) -> LineChart:
    first, last = path.losses[0].value, path.losses[-1].value
    points, spans = [], []
    for share, loss in zip(path.shares, path.losses, strict=True):
        line = (1 - share) * first + share * last
        points.append((share, loss.value - line))
        spans.append((loss.low - line, loss.high - line))
    return LineChart(
        f"Loss above the line between {path.names[0]} (0) and {path.names[1]} (1).",
        f"share of {path.names[1]}",
        "nats/token",
        (Series("measured, with 95 % interval", tuple(points), spans=tuple(spans)),),
    )


def _format_path(path: LossPath) -> str:
    best, share = path.losses[path.best], path.shares[path.best]
    inside = 0 < path.best < len(path.losses) - 1
    return (
        f"The barrier is {path.barrier:.4f} nats a token: how far the worst point lies above the "
        f"line between the ends. The least loss is {best.value:.4f} at share {share:g}"
        + (", between the models." if inside else ", one of the models itself.")
        + " All points are measured on the same records, so that they differ by less than their "
        "intervals say."
    )


def _grid(inspection: Inspection) -> tuple[list[str], list[str], list[list[TensorStats | None]]]:
    """Return layers, modules and their statistics; None for pairs without a tensor."""
    groups: dict[tuple[str, str], list[TensorStats]] = {}
    columns: dict[str, None] = {}
    for name, facts in sorted(inspection.tensors.items()):
        layer, module = locate_tensor(name)
        groups.setdefault((layer, module), []).append(facts)
        columns.setdefault(module)
    ordered = list(inspection.by_layer())
    rows = [name for name in ordered if name.startswith("layer ")]
    inner = [name for name in columns if any((row, name) in groups for row in rows)]
    summed = {place: TensorStats.sum_of(facts) for place, facts in groups.items()}
    return rows, inner, [[summed.get((row, name)) for name in inner] for row in rows]


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
    density = f"{inspection.density:.0%}"
    return Table(
        f"Pairs of models, over all tensors; the last two columns look at the largest {density} of "
        "each task vector only, as trimming does",
        ("pair", "cosine", "signs apart", f"largest {density} in common", "of those apart"),
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
                *(f"{facts.relative(parent):.2%}" for parent in range(len(names))),
            )
        )
    return Table(
        "By kind of module, what cancels most first; lengths are over the base's",
        ("module", "numbers", "cosine", "cancels", *(f"length {name}" for name in names)),
        tuple(rows),
    )


def draw_map(
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    is_fight: bool = False,
) -> str:
    """Return a heat map: green above zero, red below; shaded by magnitude.

    Args:
        caption: Caption and accessible label.
        rows: Labels from top to bottom.
        columns: Labels from left to right.
        values: One per cell; NaN leaves it empty.
        is_fight: Draw positive values in red.
    """
    finite = [abs(value) for row in values for value in row if math.isfinite(value)]
    top = max(finite, default=0.0)
    templates = open_templates("stillroom.merge.analysis")
    templates.tests["finite"] = math.isfinite
    labelled = ([*zip(columns, line, strict=True)] for line in values)
    return templates.get_template("heat_map.html").render(
        caption=f"{caption} The strongest shade is {top:.3f}.",
        columns=columns,
        grid=list(zip(rows, labelled, strict=True)),
        cell=min(76, 616 / max(len(columns), 1)),
        top=top,
        is_fight=is_fight,
    )
