"""Report: metrics, tables and charts as report.json and a self-contained report.html.

The page is self-contained: style and plots are inline, nothing is fetched; it supports light and
dark mode, print and screen readers. All text is escaped. Rendering computes no figures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from stillroom.errors import DataError
from stillroom.evaluate.charts import LineChart, Plot, format_value, render_line_chart, render_plot
from stillroom.evaluate.metrics.bootstrap import Metric
from stillroom.jobs import atomic_write
from stillroom.provenance.digests import load_json

if TYPE_CHECKING:
    from jinja2 import Environment, Template

__all__ = [
    "ComparisonTable",
    "Report",
    "Section",
    "Table",
    "describe_metric",
    "merge_reports",
    "open_templates",
    "render_page",
]


_OPTION = re.compile(r"(?<!\S)--[\w-]+")
REPORT_JSON, REPORT_HTML = "report.json", "report.html"
_METRIC_NAMES = {
    "right": "accuracy on all questions, rightly silent included",
    "f1": "token F1",
    "em": "exact match",
    "holds": "accuracy on answerable questions at equal coverage",
    "wrong": "error rate at equal coverage",
    "silent_answerable": "abstention on answerable questions",
    "silent_unanswerable": "abstention on unanswerable questions",
    "cited": "citation precision",
    "served_holds": "accuracy on answerable questions, as served",
    "served_first": "first quote right, as served",
    "served_silent": "abstention on answerable questions, as served",
    "served_silent_unanswerable": "abstention on unanswerable questions, as served",
    "cpu_s_a_question": "CPU seconds per question",
}


def describe_metric(name: str) -> str:
    """Return a metric's name in words: its key in report.json is for programs."""
    head, slash, measure = name.rpartition("/")
    return head + slash + _METRIC_NAMES.get(measure, measure.replace("_", " "))


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under named columns, with a caption."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class ComparisonTable:
    """Metrics side by side: one row per measure, one column per model.

    Each row is a label, a unit and the names of the metrics in its cells, in order of the columns;
    an empty name is an empty cell.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]


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
            "table": asdict(self.table) if self.table else None,
            **({"grid": asdict(self.grid)} if self.grid else {}),
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
                _parse(Plot, row.get("plot")),
                _parse(Table, row.get("table")),
                _parse(ComparisonTable, row.get("grid")),
                tuple(_parse(LineChart, chart) for chart in row.get("curves", ())),
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
            return cls.from_json(load_json(file.read_text(encoding="utf-8")))
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


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _parse(kind: Any, data: Any) -> Any:
    """Build a part of a report from its JSON values; None from None."""
    return None if data is None else _adapter(kind).validate_python(data)


def merge_reports(
    title: str, parts: Sequence[Path | Report], *, folder: Path | None = None
) -> Report:
    """Merge several reports into one, and write it into ``folder`` if given.

    Parts are reports, report.json files (timings.json too) or their folders, in order. The summary
    is the parts' own ones joined.

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
    merged.summary = " ".join(summaries)
    return merged.write(folder) if folder else merged


def render_page(report: Mapping[str, Any]) -> str:
    """Render the report as a self-contained HTML page."""
    metrics = {metric["name"]: metric for metric in report["metrics"]}
    shown: set[str] = set()
    sections = []
    for section in report["sections"]:
        grid = section.get("grid")
        in_grid = {name for row in grid["rows"] for name in row[2]} if grid else set()
        listed = [name for name in section["metrics"] if name in metrics and name not in in_grid]
        shown |= {*listed, *in_grid}
        sections.append({**section, "metrics": [metrics[name] for name in listed]})
    rest = [metric for name, metric in metrics.items() if name not in shown]
    if rest:
        sections.append({"title": "Further measurements", "metrics": rest})
    return _open_template().render(
        report=report,
        headlines=[metrics[name] for name in report["headlines"] if name in metrics],
        sections=sections,
        known=metrics,
    )


def _join_lines(value: object) -> str:
    return " ".join(str(value).splitlines())


def open_templates(package: str, *, is_html: bool = True) -> Environment:
    """Return the templates of a package; unknown names are errors.

    Texts in HTML are escaped, those in Markdown are one line each.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package),
        autoescape=is_html,  # noqa: S701  # Markdown is not HTML
        finalize=None if is_html else _join_lines,
        keep_trailing_newline=not is_html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


@cache
def _open_template() -> Template:
    environment = open_templates("stillroom.evaluate")
    environment.filters |= {
        "metric": lambda name, known: known.get(name),
        "keep_options": _keep_options,
        "chart": lambda chart: render_line_chart(_parse(LineChart, chart)),
        "plot": lambda plot: render_plot(_parse(Plot, plot)),
    }
    environment.globals |= {
        "count_range": _count_range,
        "describe_ends": _describe_ends,
        "describe": lambda metric: metric.get("label") or describe_metric(metric["name"]),
        "format_interval": _format_interval,
        "format_value": format_value,
        "list_notes": _list_notes,
    }
    return environment.get_template("report.html")


def _keep_options(text: str) -> str:
    """Return a text escaped, in which no line ends within a command's option."""
    return _OPTION.sub(r'<span class="option">\g<0></span>', escape(text))


def _describe_ends(metric: Mapping[str, Any]) -> str:
    """Return the interval below a value of a comparison table."""
    low, high = metric["low"], metric["high"]
    if low is None or high is None:
        return ""
    if low == high and metric["n"] > 1:
        return "all equal"  # an interval of zero width would be misleading
    return f"{format_value(low)} to {format_value(high)}"


def _list_notes(grid: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the notes of the metrics of a comparison table that have no interval."""
    notes = (
        f"{label}: {cell['note']}"
        for label, _, names in grid["rows"]
        for cell in map(known.get, names)
        if cell and cell.get("note") and cell["low"] is None
    )
    return list(dict.fromkeys(notes))


def _count_range(names: Sequence[str], known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the number of units of a row, a range where its cells differ."""
    counts = sorted({int(cell["n"]) for cell in map(known.get, names) if cell})
    if not counts:
        return "–"
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _format_interval(metric: Mapping[str, Any], before: str = "") -> str:
    low, high = metric["low"], metric["high"]
    if low is None or high is None:
        return "no interval" if before else "–"
    return f"{before}{format_value(low)} to {format_value(high, '' if before else metric['unit'])}"
