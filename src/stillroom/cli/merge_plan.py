"""``stillroom merge plan``: what a merge will do, before it does it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from stillroom.cli.merge_run import arithmetic_option
from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "plan",
    epilog="""
\b
Examples:
  stillroom merge plan recipes/merge-ties.yaml
  stillroom merge plan recipes/merge-ties.yaml method.density=0.3 --json
  stillroom merge plan recipes/merge-ties.yaml --explain model.norm.weight
""",
)
@click.argument("recipe", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--explain", metavar="TENSOR", help="Say what becomes of one tensor.")
@arithmetic_option
@json_option
@debug_option
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    explain: str | None,
    arithmetic: Literal["paper", "mergekit"] | None,
    as_json: bool,
) -> None:
    """Print what a merge will read, write and need.

    RECIPE is one of ours or a mergekit file.
    """
    from stillroom.merge.device import tell_unused
    from stillroom.merge.explain import (
        compare_sources,
        estimate_seconds,
        explain_tensor,
        list_warnings,
    )
    from stillroom.merge.loading import load_merge
    from stillroom.merge.plan import plan_sources
    from stillroom.merge.rules import rules_of
    from stillroom.merge.sources import open_sources

    loaded = load_merge(
        recipe, overrides, arithmetic=arithmetic, say=lambda note: click.echo(note, err=True)
    )
    base, parents = open_sources(loaded)
    plan = plan_sources(loaded.method, base, parents, rules_of(loaded))
    sources = [*([base] if base else []), *parents]
    if explain is not None:
        found = explain_tensor(plan, sources, explain)
        if as_json:
            print_json({"tensor": found})
        else:
            for key, value in found.items():
                click.echo(f"{key}: {value}")
        return
    warnings = list_warnings(plan, sources)
    warnings += tell_unused(loaded.device, loaded.method, loaded.compat)
    seconds, rate = estimate_seconds(plan, sources)
    rows = compare_sources(sources)
    if as_json:
        cost = {"seconds": seconds, "read_bytes_per_second": rate}
        print_json({"plan": plan.to_json() | cost, "models": rows, "warnings": warnings})
        return
    click.echo(str(plan))
    click.echo(f"  takes about {seconds:.1f} s (a sample was read at {rate / 1e6:.0f} MB a second)")
    for row in rows:
        kinds = ", ".join(row["dtypes"])
        click.echo(
            f"  {row['name']}: {row['model_type']}, {row['layers']} layers, "
            f"{row['parameters'] / 1e6:.1f} M parameters, {kinds}, vocabulary "
            f"{row['vocab_size']} ({row['vocabulary'] or 'no tokenizer'}), "
            f"license {row['license'] or 'unknown'}"
        )
    for warning in warnings:
        click.echo(f"  warning: {warning}")
