"""``stillroom merge inspect`` and ``search``: parent comparison, and search results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import click

from stillroom.cli.options import (
    FiniteFloat,
    command,
    count_option,
    device_option,
    existing_path,
    max_tokens_option,
    output_options,
    overwrite_option,
    path_option,
    seed_option,
)
from stillroom.cli.output import print_json

__all__ = [
    "inspect_command",
    "search_command",
]


@command(
    "inspect",
    "stillroom merge inspect ./base ./tuned-a ./tuned-b --out ./inspection",
    "stillroom merge inspect ./base ./tuned-a ./adapter-b --records held-out.jsonl --json",
)
@click.argument("base")
@click.argument("models", nargs=-1, required=True)
@path_option("--out", help="Output folder for the page and the data.")
@click.option(
    "--density",
    type=FiniteFloat(),
    default=0.2,
    help="Share of parameters that trimming would keep.",
)
@path_option(
    "--records",
    help="Also measure the loss at 11 points between each pair of models, on these records.",
)
@count_option("--max-records", default=200, help="Number of records, sampled with --seed.")
@seed_option
@max_tokens_option
@device_option
@overwrite_option
@output_options
def inspect_command(
    base: str,
    models: tuple[str, ...],
    out: Path | None,
    density: float,
    records: Path | None,
    max_records: int,
    seed: int,
    max_tokens: int,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Show agreement and conflicts of models.

    MODELS are checkpoints, or adapters, that were fine-tuned from BASE.
    """
    from dataclasses import replace

    from stillroom.merge.analysis.comparison import inspect_models, open_model
    from stillroom.merge.tensors.storage import open_checkpoint

    start = open_checkpoint(base)
    parents = [open_model(model, start) for model in models]
    inspection = inspect_models(start, parents, density=density)
    if records is not None:
        from stillroom.merge.analysis.comparison import measure_loss_path
        from stillroom.merge.search.scoring import draw_records

        sample = draw_records(
            str(records),
            split="",
            limit=max_records,
            seed=seed,
            say=lambda line: click.echo(line, err=True),
        )
        paths = [
            measure_loss_path(
                (inspection.parents[i], inspection.parents[j]),
                (parents[i].weights, parents[j].weights),
                sample,
                max_tokens=max_tokens,
                device=device,
            )
            for i, j in combinations(range(len(parents)), 2)
        ]
        inspection = replace(inspection, paths=tuple(paths))
    if out is not None:
        from stillroom.merge.analysis.report import write_inspection

        page = write_inspection(inspection, out, overwrite=overwrite)
        click.echo(f"wrote {page}", err=True)
    if as_json:
        print_json({"inspection": inspection.to_json()})
    else:
        click.echo(str(inspection))


@command("search", "stillroom merge search merged", "stillroom merge search merged --trials 20")
@click.argument("folder", type=existing_path)
@count_option(
    "--trials", default=10, show_default=True, least=0, help="Number of the best trials to show."
)
@output_options
def search_command(folder: Path, trials: int, as_json: bool) -> None:
    """Show the trials and the result of a merge search."""
    from stillroom.merge.search.run import format_search, read_search_result

    result = read_search_result(folder)
    if as_json:
        print_json({"path": str(folder), "search": result})
        return
    click.echo(format_search(result))
    click.echo(
        f"\n{result['objective']} on the {result['records']['choose']} records of the final choice:"
    )
    for row in result["candidates"]:
        click.echo(f"  {_format_value(row)}  {row['name']}")
    click.echo(f"\nbest of {result['tried']} trials on {result['records']['search']} records:")
    for row in _select_best(result["trials"], trials, result["best_on_search"]):
        click.echo(
            f"  {_format_value(row)}  trial {row['number']}  {_format_changes(row['changes'])}"
        )


def _select_best(
    rows: Sequence[Mapping[str, Any]], count: int, best: float
) -> list[Mapping[str, Any]]:
    """Return the best rows, ordered by the distance to the best value, for either direction."""
    good = [row for row in rows if row["value"] is not None]
    return sorted(good, key=lambda row: (abs(row["value"] - best), row["number"]))[:count]


def _format_value(row: Mapping[str, Any]) -> str:
    return "  failed" if row["value"] is None else f"{row['value']:8.4f}"


def _format_changes(changes: Mapping[str, Any]) -> str:
    parts = [f"{name}={value:.4g}" for name, value in changes["method"].items()]
    for number, model_changes in changes["models"].items():
        parts += [f"models.{number}.{name}={value:.4g}" for name, value in model_changes.items()]
    for entry in changes["parameters"]:
        values = entry["value"] if isinstance(entry["value"], list) else [entry["value"]]
        owner = "" if entry["model"] is None else f"models.{entry['model']}."
        shown = ",".join(f"{value:.3g}" for value in values)
        parts.append(f"{owner}{entry['setting']}{entry['tensors']}=[{shown}]")
    for part in changes.get("slices", ()):
        source = part["sources"][0]
        first, stop = source["layer_range"]
        parts.append(f"{source['model']}:{first}-{stop - 1}")
    return " ".join(parts)
