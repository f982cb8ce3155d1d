"""``stillroom synth preview``, ``drops`` and ``export``: calls of ``synth.output``."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from stillroom.cli.options import (
    command,
    count_option,
    existing_path,
    flag_option,
    out_folder_option,
    output_options,
    overwrite_option,
    recipe_arguments,
)
from stillroom.cli.output import print_json, print_text
from stillroom.jobs.progress import escape_line

if TYPE_CHECKING:
    from stillroom.synth.output.records import UnitPreview
    from stillroom.synth.output.rejected import RejectedRow

__all__ = [
    "drops_command",
    "export_command",
    "preview_command",
]


@command(
    "preview",
    "stillroom synth preview recipes/synth-grounded-qa.yaml",
    "stillroom synth preview recipes/synth-grounded-qa.yaml --n 10 --json",
)
@recipe_arguments
@count_option("--n", default=5, show_default=True, help="Number of prompts.")
@output_options
def preview_command(recipe: Path, overrides: tuple[str, ...], n: int, as_json: bool) -> None:
    """Generate a few records and print them."""
    from stillroom.errors import RecipeError
    from stillroom.jobs import LineReporter
    from stillroom.recipes import load_recipe
    from stillroom.synth.jobs.records import RecordsRecipe
    from stillroom.synth.output.records import preview_records

    loaded = load_recipe(recipe, overrides)
    if not isinstance(loaded, RecordsRecipe):
        raise RecipeError(
            f"a recipe of kind {loaded.kind} generates no records",
            code="recipe.wrong-kind",
            where=str(recipe),
            expected="kind: synth.records",
            next="stillroom new synth.records/grounded_qa",
        )
    units = preview_records(loaded, n, log=LineReporter())
    if as_json:
        print_json({"units": [_to_json(unit) for unit in units]})
        return
    for unit in units:
        for record, dropped_by, verdict in unit.records:
            for message in record.messages:
                print_text(f"{message.role}: {message.content}")
            print_text(
                f"  {f'dropped by {dropped_by}: {verdict.reason}' if dropped_by else 'kept'}\n"
            )
        for reason, text in unit.failures:
            print_text(f"{' '.join(text.split())[:200]}\n  no record: {reason}\n")


def _to_json(unit: UnitPreview) -> dict[str, Any]:
    return {
        "unit": unit.unit or None,
        "records": [
            {"record": record.to_json(), "dropped_by": dropped_by, "reason": verdict.reason}
            for record, dropped_by, verdict in unit.records
        ],
        "failures": [{"reason": reason, "text": text} for reason, text in unit.failures],
    }


_NARROW, _WIDE = 72, 140
_LINES = 14


@command(
    "drops",
    "stillroom synth drops records",
    'stillroom synth drops records --method grounded --reason "not supported" --n 5',
)
@click.argument("run", type=existing_path)
@click.option("--reason", default="", help="Show only rows whose reason contains this text.")
@click.option(
    "--method", default="", help="Show only rows dropped by this filter, generator or selector."
)
@click.option("--step", default="", help="Show only rows dropped at this step of the pipeline.")
@count_option("--n", default=10, show_default=True, least=0, help="Number of rows to show.")
@output_options
def drops_command(run: Path, reason: str, method: str, step: str, n: int, as_json: bool) -> None:
    """Show the dropped rows of a run with their reasons."""
    from stillroom.synth.output.rejected import count_rejected, read_rejected

    rows = list(islice(read_rejected(run, reason=reason, method=method, step=step), n))
    counts = count_rejected(run)
    if as_json:
        shown = [
            {"step": step, "method": by, "reason": why, "count": count}
            for (step, by, why), count in counts.most_common()
        ]
        print_json({"counts": shown, "rows": [row.to_json() for row in rows]})
        return
    is_shown = False
    for (step_name, by, why), count in counts.most_common():
        if reason.casefold() in why.casefold() and method in {"", by} and step in {"", step_name}:
            print_text(f"{count:8}  {f'{step_name}/' if step_name else ''}{by}: {why}")
            is_shown = True
    if not is_shown:
        print_text(f"0 of {counts.total():,} dropped rows match", err=True)
    width = min(max(shutil.get_terminal_size((100, 24)).columns, _NARROW), _WIDE)
    for row in rows:
        print_text("─" * width)
        for line in _format_columns(row, width):
            print_text(line)


def _format_columns(row: RejectedRow, width: int) -> Iterator[str]:
    """Yield the lines of a row: its content on the left, the reason on the right."""
    left_width = (width - 3) * 3 // 5
    right_width = width - 3 - left_width
    left_lines = [line for role, text in row.says for line in _wrap(f"{role}: {text}", left_width)]
    right = [line for text in _describe_drop(row) for line in _wrap(text, right_width)]
    for left_line, right_line in zip_longest(_shorten(left_lines), _shorten(right), fillvalue=""):
        yield f"{left_line:<{left_width}} │ {right_line}".rstrip()


def _describe_drop(row: RejectedRow) -> Iterator[str]:
    yield f"{f'{row.step}/' if row.step else ''}{row.method}: {row.reason}"
    if row.score is not None and (row.score or row.limit is not None):
        bound = f" (bound {row.limit:.4g})" if row.limit is not None else ""
        yield f"measured {row.score:.4g}{bound}"
    if row.against:
        yield f"against: {row.against}"
    for name, value in (row.details or {}).items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"{name}: {shown}"


def _wrap(text: str, width: int) -> list[str]:
    """Wrap a text into lines; tabs become spaces, control characters are escaped."""
    return textwrap.wrap(escape_line(" ".join(text.split())), width) or [""]


def _shorten(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], "…"]


_FORMATS = (
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "text",
    "preference",
    "stillroom",
)


@command(
    "export",
    "stillroom synth export records --out dataset",
    'stillroom synth export records --out dataset --format alpaca --parquet --name "Bee keeping"',
    "stillroom synth export faq.csv --rename frage=question --rename antwort=answer --out dataset",
)
@click.argument("records", type=existing_path, nargs=-1, required=True)
@click.option(
    "--format",
    "shape",
    type=click.Choice(_FORMATS),
    default="messages",
    show_default=True,
    help="Format of a row.",
)
@flag_option("--parquet", help="Write Parquet instead of JSON lines.")
@click.option("--name", default="", help="Name of the dataset; by default the folder's name.")
@flag_option("--with-fields", help="Keep fields and the whole origin in every row.")
@flag_option(
    "--mark",
    help="Sign a content credential (C2PA, about 7 KB) into every synthetic record; not "
    "for training data.",
)
@click.option(
    "--rename",
    multiple=True,
    metavar="OLD=NEW",
    help="Read a column or key of another name, as frage=question; may be repeated.",
)
@out_folder_option
@overwrite_option
@output_options
def export_command(
    records: tuple[Path, ...],
    shape: str,
    parquet: bool,
    name: str,
    with_fields: bool,
    mark: bool,
    rename: tuple[str, ...],
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write records as a dataset with a card and Croissant metadata.

    One file for each split; a record's field 'split' names it, and held_out becomes test. Content
    that the format cannot represent is left out and counted.
    """
    from stillroom.errors import count_noun
    from stillroom.jobs import choose_reporter
    from stillroom.provenance.text_marks import open_marker
    from stillroom.synth.output.dataset import export_records
    from stillroom.synth.output.formats import ExportFormat

    names = {old: new for old, _, new in (pair.rpartition("=") for pair in rename)}
    if len(names) < len(rename) or not all((*names, *names.values())):
        raise click.BadParameter("give each as OLD=NEW, once", param_hint="--rename")
    format: ExportFormat = next(name for name in get_args(ExportFormat) if name == shape)
    export = export_records(
        records,
        out,
        format=format,
        kind="parquet" if parquet else "jsonl",
        name=name,
        with_fields=with_fields,
        overwrite=overwrite,
        marker=open_marker() if mark else None,
        names=names,
    )
    if export.lost_fields:
        lost = ", ".join(
            f"{name} ({count_noun(count, 'row')})"
            for name, count in export.lost_fields.most_common(12)
        )
        more = len(export.lost_fields) - 12
        lost += f" and {count_noun(more, 'other')}" if more > 0 else ""
        choose_reporter().warn(
            f"fields that rows of {shape} do not hold are left out: {lost}; --with-fields, or "
            "--format stillroom, keeps them"
        )
    if export.parted_turns:
        choose_reporter().warn(
            f"{count_noun(export.parted_turns, 'row')} with a text before a call, which are two "
            "turns in sharegpt: LLaMA-Factory passes over them; --format messages has one turn"
        )
    if as_json:
        print_json({"out": str(out), **export.to_json()})
        return
    rows = ", ".join(f"{count} {split}" for split, count in sorted(export.rows.items()))
    print_text(f"{out}: {rows}")
    for why, count in export.left_out.most_common():
        print_text(f"left out: {count} rows: {why}")
