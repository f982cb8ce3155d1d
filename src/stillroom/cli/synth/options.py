"""Options, recipes and jobs of the synth commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stillroom.cli.options import (
    flag_option,
    out_folder_option,
    run_job_recipe,
    run_options,
    settings_option,
)
from stillroom.cli.output import print_json, print_report

if TYPE_CHECKING:
    from stillroom.recipes import Recipe

__all__ = ["build_recipe", "report_options", "run_study"]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def report_options(function: CommandT) -> CommandT:
    """Add the options of a command that writes a report."""
    for option in (
        run_options,
        flag_option("--estimate", "only_estimate", help="Print the estimate; run nothing."),
        out_folder_option,
        settings_option(
            "--set",
            "overrides",
            help="Setting of the recipe; may be repeated; 'stillroom new KIND' lists them.",
        ),
    ):
        function = option(function)
    return function


def build_recipe(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a command's arguments; paths start at the current folder.

    Raises:
        RecipeError: With every problem of the settings and the overrides.
    """
    from stillroom.recipes import parse_recipe

    return parse_recipe(json.dumps(settings), "command line", overrides)


def run_study(
    settings: Mapping[str, Any],
    *,
    overrides: Sequence[str],
    out: Path,
    only_estimate: bool,
    as_json: bool,
    **options: bool,
) -> None:
    """Run a recipe that writes a report and print the report; or print the estimate alone."""
    from stillroom.evaluate import Report
    from stillroom.flow import estimate_recipe

    recipe = build_recipe(settings, overrides)
    estimate = estimate_recipe(recipe)
    if only_estimate and as_json:
        print_json(
            {
                "out": str(out),
                "memory_bytes": estimate.memory_bytes,
                "disk_bytes": estimate.disk_bytes,
                "seconds": round(estimate.seconds, 1),
                "basis": estimate.basis,
            }
        )
    elif only_estimate or not options["quiet"]:
        click.echo(
            f"about {estimate.seconds / 60:.0f} minutes (within a factor of three), "
            f"{estimate.memory_bytes / 1e9:.1f} GB of memory: {estimate.basis}",
            err=not only_estimate,
        )
    if only_estimate:
        return
    artifact = run_job_recipe(recipe, out, options)
    warnings = artifact.details.get("warnings")
    also = {} if warnings is None else {"warned": _count_warnings(warnings)}
    print_report(out, artifact, Report.read(out / "output"), as_json=as_json, **also)


def _count_warnings(warnings: Any) -> int:
    """Count warnings in a list, or in lists by name."""
    groups = warnings.values() if isinstance(warnings, Mapping) else [warnings]
    return sum(map(len, groups))
