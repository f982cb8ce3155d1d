"""Report: metrics with their intervals, as report.json for machines and report.html for people.

The page stands alone: style and plots are inline, nothing is fetched, it reads in light and dark,
on paper and by screen reader. All text is escaped. Knows numbers and words, no models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.evaluate.curves import Curves
from stillroom.evaluate.metrics import Metric
from stillroom.evaluate.page import draw_page
from stillroom.evaluate.plots import Plot
from stillroom.jobs import atomic_write

__all__ = ["Grid", "Report", "Section", "Table", "merge_reports"]

REPORT_JSON, REPORT_HTML = "report.json", "report.html"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under named columns; the caption says what they are."""

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
        """Read what ``to_json`` wrote."""
        rows = tuple(tuple(str(cell) for cell in row) for row in data["rows"])
        return cls(data["caption"], tuple(data["columns"]), rows)


@dataclass(frozen=True, slots=True)
class Grid:
    """Metrics side by side: one row a measure, one column a model.

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
    def from_json(cls, data: Mapping[str, Any]) -> Grid:
        """Read what ``to_json`` wrote."""
        rows = tuple((str(row[0]), str(row[1]), tuple(row[2])) for row in data["rows"])
        return cls(data["caption"], tuple(data["columns"]), rows)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report: words, metrics, a plot, curves, a grid, a table; any may be absent."""

    title: str
    text: str = ""
    metrics: tuple[Metric, ...] = ()
    plot: Plot | None = None
    table: Table | None = None
    grid: Grid | None = None
    curves: tuple[Curves, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; metrics by name, since the report lists them all."""
        return {
            "title": self.title,
            "text": self.text,
            "metrics": [metric.name for metric in self.metrics],
            "plot": self.plot.to_json() if self.plot else None,
            "table": self.table.to_json() if self.table else None,
            **({"grid": self.grid.to_json()} if self.grid else {}),
            **({"curves": [one.to_json() for one in self.curves]} if self.curves else {}),
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
            DataError: If a metric of that name is there already with another value.
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
        grid: Grid | None = None,
        curves: Sequence[Curves] = (),
    ) -> Report:
        """Add a section with its metrics, and return the report.

        The metrics of a grid's cells are shown there and listed no second time.

        Raises:
            DataError: If a metric of that name is there already with another value.
        """
        for metric in metrics:
            self.add(metric)
        whole = Section(title, text, tuple(metrics), plot, table, grid, tuple(curves))
        self.sections.append(whole)
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
        """Read what ``to_json`` wrote; a file that holds metrics only is enough."""
        metrics = {row["name"]: Metric.from_json(row) for row in data["metrics"]}
        sections = [
            Section(
                row["title"],
                row.get("text", ""),
                tuple(metrics[name] for name in row.get("metrics", ()) if name in metrics),
                Plot.from_json(row["plot"]) if row.get("plot") else None,
                Table.from_json(row["table"]) if row.get("table") else None,
                Grid.from_json(row["grid"]) if row.get("grid") else None,
                tuple(Curves.from_json(one) for one in row.get("curves", ())),
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
                next="give the folder of a finished job of kind evaluate",
            ) from error

    def write(self, folder: Path) -> Report:
        """Write report.json and report.html into ``folder``, and return the report."""
        with atomic_write(folder / REPORT_JSON) as file:
            json.dump(self.to_json(), file, ensure_ascii=False, indent=1, allow_nan=False)
            file.write("\n")
        with atomic_write(folder / REPORT_HTML) as file:
            file.write(draw_page(self.to_json()))
        return self


def merge_reports(
    title: str, parts: Sequence[Path | Report], *, summary: str = "", folder: Path | None = None
) -> Report:
    """Return one report of several, and write it into ``folder`` if given.

    Args:
        title: Of the whole.
        parts: Reports, report.json files (timings.json too) or folders that hold one, in the order
            they are shown.
        summary: What the whole says, in a sentence or two; by default the parts' own, one after
            the other.
        folder: Where report.json and report.html are written.

    Raises:
        DataError: If a part cannot be read, or two give different values to one name.
    """
    whole = Report(title)
    said = []
    for part in parts:
        report = part if isinstance(part, Report) else Report.read(part)
        for metric in report.metrics.values():
            whole.add(metric, is_headline=metric.name in report.headlines)
        whole.sections.extend(report.sections)
        if report.summary:
            said.append(report.summary)
    whole.summary = summary or " ".join(said)
    return whole.write(folder) if folder else whole
