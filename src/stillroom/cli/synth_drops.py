"""``stillroom synth drops``: what a run dropped, row beside reason."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

if TYPE_CHECKING:
    from stillroom.synth.browsing import Row

__all__ = ["command"]

_NARROW, _WIDE = 72, 140
_LINES = 14


@click.command(
    "drops",
    epilog="""
\b
Examples:
  stillroom synth drops records
  stillroom synth drops records --method grounded --reason "not supported" --n 5
""",
)
@click.argument("run", type=existing_path)
@click.option("--reason", default="", help="Only rows whose reason holds this.")
@click.option("--method", default="", help="Only what this filter, generator or selector dropped.")
@click.option("--step", default="", help="Only what fell at this step of a graph.")
@click.option("--n", default=10, type=click.IntRange(min=0), show_default=True, help="Rows shown.")
@json_option
@debug_option
def command(run: Path, reason: str, method: str, step: str, n: int, as_json: bool) -> None:
    """Show what a run dropped, row beside reason."""
    from stillroom.synth.browsing import count_rows, read_rows

    rows = list(islice(read_rows(run, reason=reason, method=method, step=step), n))
    counts = count_rows(run)
    if as_json:
        told = [
            {"step": at, "method": by, "reason": why, "count": count}
            for (at, by, why), count in counts.most_common()
        ]
        print_json({"counts": told, "rows": [row.to_json() for row in rows]})
        return
    for (at, by, why), count in counts.most_common():
        if reason.casefold() in why.casefold() and method in {"", by} and step in {"", at}:
            click.echo(f"{count:8}  {f'{at}/' if at else ''}{by}: {why}")
    width = min(max(shutil.get_terminal_size((100, 24)).columns, _NARROW), _WIDE)
    for row in rows:
        click.echo("─" * width)
        for line in _lay_out(row, width):
            click.echo(line)


def _lay_out(row: Row, width: int) -> Iterator[str]:
    """Yield the lines of a row: what it says on the left, why it fell on the right."""
    left_width = (width - 3) * 3 // 5
    right_width = width - 3 - left_width
    left = [line for role, text in row.says for line in _wrap(f"{role}: {text}", left_width)]
    right = [line for text in _tell(row) for line in _wrap(text, right_width)]
    for one, other in zip_longest(_shorten(left), _shorten(right), fillvalue=""):
        yield f"{one:<{left_width}} │ {other}".rstrip()


def _tell(row: Row) -> Iterator[str]:
    yield f"{f'{row.step}/' if row.step else ''}{row.method}: {row.reason}"
    if row.score is not None and (row.score or row.limit is not None):
        bound = f" (bound {row.limit:.4g})" if row.limit is not None else ""
        yield f"measured {row.score:.4g}{bound}"
    if row.against:
        yield f"against: {row.against}"
    for name, value in (row.told or {}).items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"{name}: {shown}"


def _wrap(text: str, width: int) -> list[str]:
    """Return a text in lines; tabs and control characters are spaces."""
    plain = " ".join("".join(c if c.isprintable() or c == " " else " " for c in text).split())
    return textwrap.wrap(plain, width) or [""]


def _shorten(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], "…"]
