"""``stillroom merge search``: what a search of merges tried and found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "search",
    epilog="""
\b
Examples:
  stillroom merge search merged
  stillroom merge search merged --trials 20
""",
)
@click.argument("folder", type=existing_path)
@click.option(
    "--trials",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="How many of the best trials are shown.",
)
@json_option
@debug_option
def command(folder: Path, trials: int, as_json: bool) -> None:
    """Show what a search of merges tried and found."""
    from stillroom.merge.search_result import read_search, say_found

    found = read_search(folder)
    if as_json:
        print_json({"path": str(folder), "search": found})
        return
    click.echo(say_found(found))
    click.echo(f"\n{found['objective']} on the {found['records']['choose']} records that choose:")
    for row in found["candidates"]:
        click.echo(f"  {_say_value(row)}  {row['name']}")
    click.echo(f"\nbest of {found['tried']} trials on {found['records']['search']} records:")
    for row in _best(found["trials"], trials, found["best_on_search"]):
        click.echo(f"  {_say_value(row)}  trial {row['number']}  {_say_changes(row['changes'])}")


def _best(rows: Sequence[Mapping[str, Any]], count: int, best: float) -> list[Mapping[str, Any]]:
    """Return the best rows; the distance to the best value orders, whichever way is better."""
    good = [row for row in rows if row["value"] is not None]
    return sorted(good, key=lambda row: (abs(row["value"] - best), row["number"]))[:count]


def _say_value(row: Mapping[str, Any]) -> str:
    return "  failed" if row["value"] is None else f"{row['value']:8.4f}"


def _say_changes(changes: Mapping[str, Any]) -> str:
    parts = [f"{name}={value:.4g}" for name, value in changes["method"].items()]
    for number, own in changes["models"].items():
        parts += [f"models.{number}.{name}={value:.4g}" for name, value in own.items()]
    for entry in changes["vary"]:
        values = entry.get("layers", [entry.get("value")])
        owner = "" if entry["model"] is None else f"models.{entry['model']}."
        shown = ",".join(f"{value:.3g}" for value in values)
        parts.append(f"{owner}{entry['setting']}{entry['tensors']}=[{shown}]")
    for part in changes.get("slices", ()):
        model = part["models"][0]
        parts.append(f"{model['model']}:{model['layers'][0]}-{model['layers'][1] - 1}")
    return " ".join(parts)
