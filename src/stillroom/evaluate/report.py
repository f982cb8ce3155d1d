"""Report: metrics, tables and charts as report.json and a self-contained report.html.

The page is self-contained: style and plots are inline, nothing is fetched; it supports light and
dark mode, print and screen readers. All text is escaped. Rendering computes no figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.evaluate.charts import LineChart, Plot, format_value, render_line_chart, render_plot
from stillroom.evaluate.metrics.bootstrap import Metric
from stillroom.jobs import atomic_write

__all__ = [
    "ComparisonTable",
    "Report",
    "Section",
    "Table",
    "merge_reports",
    "render_page",
]


REPORT_JSON, REPORT_HTML = "report.json", "report.html"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under named columns, with a caption."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "caption": self.caption,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        """Build from the result of ``to_json``."""
        rows = tuple(tuple(str(cell) for cell in row) for row in data["rows"])
        return cls(data["caption"], tuple(data["columns"]), rows)


@dataclass(frozen=True, slots=True)
class ComparisonTable:
    """Metrics side by side: one row per measure, one column per model.

    Each row is a label, a unit and the names of the metrics in its cells, in order of the columns;
    an empty name is an empty cell.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "caption": self.caption,
            "columns": list(self.columns),
            "rows": [[label, unit, list(names)] for label, unit, names in self.rows],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ComparisonTable:
        """Build from the result of ``to_json``."""
        rows = tuple((str(row[0]), str(row[1]), tuple(row[2])) for row in data["rows"])
        return cls(data["caption"], tuple(data["columns"]), rows)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report: text, metrics, a plot, curves, a grid, a table; all optional."""

    title: str
    text: str = ""
    metrics: tuple[Metric, ...] = ()
    plot: Plot | None = None
    table: Table | None = None
    grid: ComparisonTable | None = None
    curves: tuple[LineChart, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; metrics by name, since the report lists them all."""
        return {
            "title": self.title,
            "text": self.text,
            "metrics": [metric.name for metric in self.metrics],
            "plot": self.plot.to_json() if self.plot else None,
            "table": self.table.to_json() if self.table else None,
            **({"grid": self.grid.to_json()} if self.grid else {}),
            **({"curves": [chart.to_json() for chart in self.curves]} if self.curves else {}),
        }


@dataclass
class Report:
    """A title, metrics by name, and sections; ``headlines`` names the metrics shown first.

    Example:
        Report("Held-out questions").add(metric).write(folder)
    """

    title: str
    summary: str = ""
    metrics: dict[str, Metric] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    headlines: list[str] = field(default_factory=list)

    def add(self, metric: Metric, *, is_headline: bool = False) -> Report:
        """Add a metric, and return the report.

        Raises:
            DataError: If another value of that name exists.
        """
        known = self.metrics.get(metric.name)
        if known is not None and known.to_json() != metric.to_json():
            raise DataError(
                f"the report '{self.title}' has a metric '{metric.name}' already",
                code="report.duplicate-metric",
                expected="one value a name",
                next="name the second one for what makes it different",
            )
        self.metrics[metric.name] = metric
        if is_headline and metric.name not in self.headlines:
            self.headlines.append(metric.name)
        return self

    def section(
        self,
        title: str,
        text: str = "",
        *,
        metrics: Sequence[Metric] = (),
        table: Table | None = None,
        plot: Plot | None = None,
        grid: ComparisonTable | None = None,
        curves: Sequence[LineChart] = (),
    ) -> Report:
        """Add a section with its metrics, and return the report.

        Metrics in the grid's cells are not listed again.

        Raises:
            DataError: If another value of one of the names exists.
        """
        for metric in metrics:
            self.add(metric)
        section = Section(title, text, tuple(metrics), plot, table, grid, tuple(curves))
        self.sections.append(section)
        return self

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "title": self.title,
            "summary": self.summary,
            "headlines": list(self.headlines),
            "metrics": [metric.to_json() for metric in self.metrics.values()],
            "sections": [section.to_json() for section in self.sections],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Build from the result of ``to_json``; a file with only metrics is enough."""
        metrics = {row["name"]: Metric.from_json(row) for row in data["metrics"]}
        sections = [
            Section(
                row["title"],
                row.get("text", ""),
                tuple(metrics[name] for name in row.get("metrics", ()) if name in metrics),
                Plot.from_json(row["plot"]) if row.get("plot") else None,
                Table.from_json(row["table"]) if row.get("table") else None,
                ComparisonTable.from_json(row["grid"]) if row.get("grid") else None,
                tuple(LineChart.from_json(chart) for chart in row.get("curves", ())),
            )
            for row in data.get("sections", ())
        ]
        return cls(
            data.get("title", ""),
            data.get("summary", ""),
            metrics,
            sections,
            list(data.get("headlines", ())),
        )

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report.json, or the one in a folder.

        Raises:
            DataError: If there is none, or it is not a report.
        """
        file = path / REPORT_JSON if path.is_dir() else path
        try:
            return cls.from_json(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file} cannot be read as a report: {error}",
                code="report.unreadable",
                expected='JSON with "metrics": [{name, value, low, high, n, unit}, ...]',
                next="give the folder of a finished job of kind evaluate.report",
            ) from error

    def write(self, folder: Path) -> Report:
        """Write report.json and report.html into ``folder``, and return the report."""
        with atomic_write(folder / REPORT_JSON) as file:
            json.dump(self.to_json(), file, ensure_ascii=False, indent=1, allow_nan=False)
            file.write("\n")
        with atomic_write(folder / REPORT_HTML) as file:
            file.write(render_page(self.to_json()))
        return self


def merge_reports(
    title: str, parts: Sequence[Path | Report], *, summary: str = "", folder: Path | None = None
) -> Report:
    """Merge several reports into one, and write it into ``folder`` if given.

    Args:
        title: Title of the merged report.
        parts: Reports, report.json files (timings.json too) or their folders, in order.
        summary: Summary in a sentence or two; by default the parts' own summaries joined.
        folder: Destination of report.json and report.html.

    Raises:
        DataError: If a part cannot be read, or one name has different values.
    """
    merged = Report(title)
    summaries = []
    for part in parts:
        report = part if isinstance(part, Report) else Report.read(part)
        for metric in report.metrics.values():
            merged.add(metric, is_headline=metric.name in report.headlines)
        merged.sections.extend(report.sections)
        if report.summary:
            summaries.append(report.summary)
    merged.summary = summary or " ".join(summaries)
    return merged.write(folder) if folder else merged


_STYLE = """
:root{color-scheme:light dark;--page:#fbfaf7;--card:#fff;--ink:#23211d;--quiet:#66615a;
--line:#e3ded5;--accent:#8a4b14;--bar:#d9a066;--dot:#8a4b14;
--second:#1d6473;--third:#6b3f86}
@media(prefers-color-scheme:dark){:root{--page:#181715;--card:#211f1c;--ink:#ece7de;--quiet:#a49d92;
--line:#3a3631;--accent:#e8a45c;--bar:#8a5a2b;--dot:#f0b878;
--second:#6fc3d4;--third:#c39be0}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:860px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em}
h2{font-size:20px;margin:0 0 8px}
p{margin:0 0 12px;max-width:68ch}
.quiet,figcaption,.note{color:var(--quiet);font-size:14px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:12px;margin:24px 0;
padding:0;list-style:none}
.tiles li,section{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tiles li{padding:14px 16px;border-top:3px solid var(--accent)}
.tiles .name{display:block;font-size:13px;line-height:1.35;color:var(--quiet);
overflow-wrap:anywhere}
.tiles small{font-size:14px;font-weight:400;color:var(--quiet)}
.tiles b{display:block;font-size:26px;line-height:1.3;font-variant-numeric:tabular-nums}
section{padding:20px 24px;margin:20px 0;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14.5px;margin:12px 0 4px}
caption{text-align:left;color:var(--quiet);font-size:14px;padding-bottom:6px}
th,td{text-align:left;padding:7px 12px 7px 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:anywhere}
tr>:last-child{padding-right:0}
thead th{font-weight:600;color:var(--quiet);border-bottom-width:2px;white-space:nowrap}
tbody th{font-weight:500}
td.number,th.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
table.grid td,table.grid thead th.number{padding:7px 0 7px 8px;overflow-wrap:normal}
table.grid thead th{white-space:normal;padding-left:0}
table.grid tbody th{min-width:130px}
table.grid td .note{font-size:11.5px;white-space:nowrap}
figure{margin:14px 0 6px;overflow-x:auto}
svg{width:100%;height:auto;display:block}
figure>svg{min-width:560px}
svg text{font-size:13px;fill:var(--ink)}
svg .label{text-anchor:end}svg .tick{text-anchor:middle;fill:var(--quiet);font-size:12px}
svg .value{font-weight:600;font-variant-numeric:tabular-nums}
svg .grid{stroke:var(--line)}svg .bar{fill:var(--bar)}svg .dot{fill:var(--dot)}
svg .whisker{stroke:var(--accent);stroke-width:2;fill:none}
svg .tick.label{text-anchor:end}
svg .line{fill:none;stroke-width:2.2}svg .even{stroke:var(--quiet);stroke-dasharray:2 4}
svg .line.s0{stroke:var(--accent)}svg circle.s0{fill:var(--accent)}
svg .line.s1{stroke:var(--second);stroke-dasharray:9 4}svg circle.s1{fill:var(--second)}
svg .line.s2{stroke:var(--third);stroke-dasharray:2 3}svg circle.s2{fill:var(--third)}
svg .line.s3{stroke:var(--quiet);stroke-dasharray:12 4 2 4}svg circle.s3{fill:var(--quiet)}
svg .line.s4{stroke:var(--bar)}svg circle.s4{fill:var(--bar)}
svg .span{stroke-width:1.4;fill:none;stroke-opacity:.7}
svg .span.s0{stroke:var(--accent)}svg .span.s1{stroke:var(--second)}
svg .span.s2{stroke:var(--third)}svg .span.s3{stroke:var(--quiet)}svg .span.s4{stroke:var(--bar)}
.keys{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:2px 0 4px;padding:0;
font-size:14px}
.keys svg{display:inline-block;width:36px;height:12px;margin-right:6px;vertical-align:-1px}
footer{margin-top:32px}
@media(max-width:600px){th,td{overflow-wrap:break-word}section{padding:16px}}
@media print{body{background:#fff}section,.tiles li{break-inside:avoid}}
"""


_CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render_page(report: Mapping[str, Any]) -> str:
    """Render the report as a self-contained HTML page."""
    metrics = {metric["name"]: metric for metric in report["metrics"]}
    shown: set[str] = set()
    parts = []
    for section in report["sections"]:
        mine = [metrics[name] for name in section["metrics"] if name in metrics]
        in_grid = {name for row in (section.get("grid") or {}).get("rows", ()) for name in row[2]}
        shown |= {metric["name"] for metric in mine} | in_grid
        listed = [metric for metric in mine if metric["name"] not in in_grid]
        parts.append(_render_section(section, listed, metrics))
    remaining = [metric for name, metric in metrics.items() if name not in shown]
    if remaining:
        parts.append(_render_section({"title": "Further measurements"}, remaining, metrics))
    title = escape(report["title"])
    summary = f"<p>{escape(report['summary'])}</p>" if report["summary"] else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT_SECURITY_POLICY}">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main>"
        f"<header><h1>{title}</h1>{summary}</header>\n"
        f"{_render_tiles([metrics[name] for name in report['headlines'] if name in metrics])}"
        + "\n".join(parts)
        + '\n<footer class="quiet"><p>Intervals are 95 % bootstrap intervals (BCa) over the units '
        "counted in column n. A dash means that no interval can be given. The same numbers stand "
        "in the JSON file beside this page.</p></footer></main></body></html>\n"
    )


def _render_tiles(metrics: list[Mapping[str, Any]]) -> str:
    if not metrics:
        return ""
    tiles = [
        f'<li><span class="name">{_breakable_name(metric["name"])}</span>'
        f"<b>{_format_value_with_unit(metric)}</b>"
        f'<span class="quiet">{escape(_describe_interval(metric))}</span></li>'
        for metric in metrics
    ]
    return f'<ul class="tiles" aria-label="Headlines">{"".join(tiles)}</ul>\n'


def _render_section(
    section: Mapping[str, Any],
    metrics: list[Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
) -> str:
    parts = [f"<h2>{escape(section['title'])}</h2>"]
    parts += [f"<p>{escape(line)}</p>" for line in section.get("text", "").split("\n\n") if line]
    if section.get("plot"):
        parts.append(render_plot(Plot.from_json(section["plot"])))
    parts += [render_line_chart(LineChart.from_json(chart)) for chart in section.get("curves", ())]
    if section.get("grid"):
        parts.append(_render_comparison(section["grid"], known))
    if metrics:
        parts.append(_render_metrics(section["title"], metrics))
    if section.get("table"):
        parts.append(_render_table(section["table"]))
    return f"<section>{''.join(parts)}</section>"


def _render_metrics(title: str, metrics: list[Mapping[str, Any]]) -> str:
    rows = []
    for metric in metrics:
        note = f'<div class="note">{escape(metric["note"])}</div>' if metric.get("note") else ""
        rows.append(
            f'<tr><th scope="row">{_breakable_name(metric["name"])}{note}</th>'
            f'<td class="number">{escape(format_value(metric["value"], metric["unit"]))}</td>'
            f'<td class="number">{escape(_format_interval(metric))}</td>'
            f'<td class="number">{metric["n"]}</td></tr>'
        )
    return (
        f"<table><caption>Measurements: {escape(title)}</caption><thead><tr>"
        '<th scope="col">metric</th><th scope="col" class="number">value</th>'
        '<th scope="col" class="number">95 % interval</th><th scope="col" class="number">n</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _render_comparison(grid: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> str:
    """Render metrics side by side: each cell has the value and below it the interval."""
    head = "".join(
        f'<th scope="col" class="number">{escape(str(column))}</th>' for column in grid["columns"]
    )
    body, notes = [], []
    for label, unit, names in grid["rows"]:
        cells = [known.get(name) for name in names]
        small = f'<div class="note">{escape(unit)}</div>' if unit else ""
        body.append(
            f'<tr><th scope="row">{escape(label)}{small}</th>'
            f"{''.join(_render_cell(cell) for cell in cells)}"
            f'<td class="number">{_count_range(cells)}</td></tr>'
        )
        notes += [
            f"{label}: {cell['note']}"
            for cell in cells
            if cell and cell.get("note") and cell["low"] is None
        ]
    note_lines = "".join(f"<div>{escape(note)}.</div>" for note in dict.fromkeys(notes))
    return (
        f'<table class="grid"><caption>{escape(grid["caption"])}</caption><thead><tr>'
        f'<th scope="col">measure</th>{head}<th scope="col" class="number">n</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
        + (f'<div class="note">{note_lines}</div>' if note_lines else "")
    )


def _render_cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return '<td class="number quiet">–</td>'
    low, high = metric["low"], metric["high"]
    ends = "" if low is None or high is None else f"{format_value(low)} to {format_value(high)}"
    if low == high and ends and metric["n"] > 1:
        ends = "all equal"  # an interval of zero width would be misleading
    under = f'<div class="note">{escape(ends)}</div>' if ends else ""
    return f'<td class="number">{escape(format_value(metric["value"]))}{under}</td>'


def _count_range(cells: list[Mapping[str, Any] | None]) -> str:
    """Return the number of units of a row, a range where its cells differ."""
    counts = sorted({int(cell["n"]) for cell in cells if cell})
    if not counts:
        return "–"
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _render_table(table: Mapping[str, Any]) -> str:
    head = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in table["columns"])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in table["rows"]
    )
    return (
        f"<table><caption>{escape(table['caption'])}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _describe_interval(metric: Mapping[str, Any]) -> str:
    """Return a tile's interval, or the reason for its absence."""
    if metric["low"] is None and metric["high"] is None and metric.get("note"):
        return str(metric["note"])
    return _format_interval(metric, "95 %: ")


def _format_interval(metric: Mapping[str, Any], before: str = "") -> str:
    low, high = metric["low"], metric["high"]
    if low is None or high is None:
        return "no interval" if before else "–"
    return f"{before}{format_value(low)} to {format_value(high, '' if before else metric['unit'])}"


def _format_value_with_unit(metric: Mapping[str, Any]) -> str:
    """Return a tile's value, escaped, with a long unit in small letters."""
    unit = metric["unit"]
    if len(unit) < 3:  # short units such as GB belong to their number
        return escape(format_value(metric["value"], unit))
    return f"{escape(format_value(metric['value']))} <small>{escape(unit)}</small>"


def _breakable_name(name: str) -> str:
    """Return a metric's name, escaped, with breaks allowed after slashes and underscores."""
    return escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>")
