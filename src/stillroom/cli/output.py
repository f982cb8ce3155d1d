"""Output that commands share: JSON, wrapped rows, tables and reports."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from stillroom.evaluate import Report
    from stillroom.provenance import Artifact

__all__ = [
    "align_columns",
    "format_metric",
    "format_row",
    "format_value",
    "has_printed_json",
    "print_json",
    "print_json_text",
    "print_measurements",
    "print_report",
    "print_rows",
    "print_text",
]

# All but tabs, line ends and the carriage returns before them; then changes of direction, and
# halves of surrogate pairs, which cannot be printed.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)
_MAX_VALUE_LENGTH, _MAX_TEXT_LENGTH = 200, 2000
_MAX_COLUMN_WIDTH = 60
_MAX_METRICS = 20
_JSON_VERSION = 1
_printed_results: list[bool] = []


def print_text(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print text, escaping characters that would steer a terminal.

    Every command prints by this: names of files and tensors, licenses and settings in any of its
    lines may be a stranger's.
    """
    click.echo(_CONTROLS.sub(lambda match: repr(match[0])[1:-1], text), nl=nl, err=err)


def format_value(value: object, *, is_inner: bool = False) -> str:
    """Format a JSON value as text: keys with values, without brackets."""
    if value is None or value in ("", [], {}, ()):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        text = ", ".join(
            f"{name}: {format_value(item, is_inner=True)}" for name, item in value.items()
        )
        return f"({text})" if is_inner else text
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(item, Mapping) for item in value):
            names = [
                str(item["name"]) for item in value if isinstance(item, Mapping) and "name" in item
            ]
            return ", ".join(names) if len(names) == len(value) else f"{len(value)} of them"
        text = ", ".join(format_value(item, is_inner=True) for item in value)
        return f"({text})" if is_inner else text
    return str(value)


def print_rows(rows: Sequence[tuple[str, object]]) -> None:
    """Print rows, with names padded to one width; long texts, and longer lists, are truncated."""
    from stillroom.jobs import escape_line

    width = max((len(name) for name, _ in rows), default=0) + 2
    for name, value in rows:
        text = escape_line(format_value(value))  # a stranger's line end begins no row
        limit = _MAX_TEXT_LENGTH if isinstance(value, str) else _MAX_VALUE_LENGTH
        text = text if len(text) <= limit else text[: limit - 3] + "..."
        print_text(format_row(f"  {name:{width}}", text))


def print_report(out: Path, artifact: Artifact, report: Report) -> None:
    """Print a report's summary and tables."""
    print_text(report.summary)
    for section in report.sections:
        if section.table is not None:
            print_text(f"\n{section.title}: {section.table.caption}. {section.text}".rstrip())
            print_text(align_columns([section.table.columns, *section.table.rows]))
    print_text(f"\n{out}: {artifact.kind}, digest {artifact.digest[:16]}")


def print_measurements(folder: Path) -> None:
    """Print the main metrics of the report in a folder, if there is one, and where the page is."""
    from stillroom.evaluate.report import REPORT_HTML, REPORT_JSON, Report

    if not (folder / REPORT_JSON).is_file():
        return
    report = Report.read(folder)
    named = [report.metrics[name] for name in report.headlines if name in report.metrics]
    shown = (named or [*report.metrics.values()])[:_MAX_METRICS]
    for metric in shown:
        print_text(f"{metric.name:34} {format_metric(metric.to_json())}")
    if more := len(report.metrics) - len(shown):
        print_text(f"{'':34} and {more} more in the report")
    print_text(f"report   {folder / REPORT_HTML}")


def format_metric(metric: Mapping[str, Any]) -> str:
    """Format the value of a metric with its interval, unit and count."""
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None:
        return f"not measured (n={metric['n']})"
    is_whole = not isinstance(value, float) or value.is_integer()
    shown = f"{value:,.0f}" if is_whole else f"{value:,.4g}"
    interval = f" [{low:.4g}, {high:.4g}]" if low is not None and low != high else ""
    unit = f" {metric['unit']}" if metric["unit"] else ""
    return f"{shown}{interval}{unit} (n={metric['n']})"


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text, each column as wide as its longest cell, at most 60; … is the rest."""
    rows = [
        [
            cell if len(cell) <= _MAX_COLUMN_WIDTH else f"{cell[: _MAX_COLUMN_WIDTH - 1]}…"
            for cell in row
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def format_row(lead: str, text: str, *, always: bool = False) -> str:
    """Return a row of a table, its text wrapped to the terminal with a hanging indent.

    ``always`` wraps to $COLUMNS also without a terminal; otherwise a row is one line there, as
    other programs expect.
    """
    if not always and not sys.stdout.isatty():
        return lead + text
    width = max(shutil.get_terminal_size().columns, 30)
    indent = " " * len(lead) if width >= 2 * len(lead) else "    "
    return click.wrap_text(text, width, initial_indent=lead, subsequent_indent=indent)


def has_printed_json() -> bool:
    """Return whether this process has printed its result as JSON."""
    return bool(_printed_results)


def print_json(value: dict[str, Any]) -> None:
    """Print a result as one JSON object with its version."""
    _printed_results.append(True)
    print_json_text(json.dumps({"version": _JSON_VERSION, **value}, ensure_ascii=False, indent=1))


def print_json_text(text: str, *, nl: bool = True) -> None:
    """Print JSON; what would steer a terminal, and halves of surrogate pairs, as its escapes."""
    click.echo(_CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text), nl=nl)
