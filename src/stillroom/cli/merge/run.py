"""``stillroom merge run``, ``plan`` and ``verify``: ``merge.planning``, ``merge.verification``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from stillroom.cli.options import (
    FiniteFloatRange,
    command,
    count_option,
    existing_path,
    flag_option,
    out_folder_option,
    output_options,
    recipe_arguments,
    run_job_recipe,
    run_options,
)
from stillroom.cli.output import print_json, print_text

__all__ = [
    "arithmetic_option",
    "plan_command",
    "run_command",
    "verify_command",
]

arithmetic_option = click.option(
    "--arithmetic",
    type=click.Choice(["paper", "mergekit"]),
    help="Arithmetic of the methods' papers, or bit-identical to mergekit; default: as in the "
    "recipe, and mergekit for a mergekit file.",
)


@command(
    "run",
    "stillroom merge run recipes/merge-ties.yaml --out merged",
    "stillroom merge run my-mergekit.yml --out merged",
    "stillroom merge run my-mergekit.yml --arithmetic paper --out merged",
)
@recipe_arguments
@out_folder_option
@arithmetic_option
@run_options
def run_command(
    recipe: Path,
    overrides: tuple[str, ...],
    out: Path,
    arithmetic: Literal["paper", "mergekit"] | None,
    as_json: bool,
    **options: bool,
) -> None:
    """Run a merge recipe or an unchanged mergekit file.

    If a mergekit file describes several merges, those before the last are written to OUT.parts.
    """
    from stillroom.cli.results import print_run
    from stillroom.jobs import LineReporter
    from stillroom.merge.mergekit.recipe_files import load_merges

    parts = out.parent / f"{out.name}.parts"
    merges = load_merges(
        recipe,
        overrides,
        arithmetic=arithmetic,
        parts=parts,
        warn=LineReporter().warn,
    )
    if len(merges) > 1:
        parts.mkdir(parents=True, exist_ok=True)
    for number, (name, merge) in enumerate(merges, 1):
        is_last = number == len(merges)
        target = out if is_last else parts / name
        artifact = run_job_recipe(merge, target, options)
        if is_last or not as_json:
            print_run(target, artifact, as_json=as_json)


@command(
    "plan",
    "stillroom merge plan recipes/merge-ties.yaml",
    "stillroom merge plan recipes/merge-ties.yaml method.density=0.3 --json",
    "stillroom merge plan recipes/merge-ties.yaml --explain model.norm.weight",
    "stillroom merge plan merge.transplant donor=./donor target=./target",
)
@recipe_arguments
@click.option("--explain", metavar="TENSOR", help="Explain one tensor.")
@arithmetic_option
@output_options
def plan_command(
    recipe: Path,
    overrides: tuple[str, ...],
    explain: str | None,
    arithmetic: Literal["paper", "mergekit"] | None,
    as_json: bool,
) -> None:
    """Print the inputs, outputs and resources of a merge.

    RECIPE is a Stillroom recipe or a mergekit file.
    """
    from stillroom.jobs import LineReporter
    from stillroom.merge.mergekit.recipe_files import load_merge
    from stillroom.merge.planning.plan import (
        compare_sources,
        estimate_seconds,
        explain_tensor,
        list_warnings,
    )
    from stillroom.merge.tensors.linear_algebra import warn_unused_device

    log = LineReporter()
    loaded = load_merge(recipe, overrides, arithmetic=arithmetic, warn=log.warn)
    merge = loaded.open()
    plan, sources = merge.plan(), list(merge.sources)
    if explain is not None:
        explanation = explain_tensor(plan, explain)
        if as_json:
            print_json({"tensor": explanation})
        else:
            for key, value in explanation.items():
                print_text(f"{key}: {value}")
        return
    warnings = list_warnings(plan, sources)
    warnings += warn_unused_device(merge.device, merge.method, merge.rules.arithmetic)
    seconds, rate = estimate_seconds(plan, sources)
    rows = compare_sources(sources)
    if as_json:
        cost = {"seconds": seconds, "read_bytes_per_second": rate}
        print_json({"plan": plan.to_json() | cost, "models": rows, "warnings": warnings})
        return
    print_text(str(plan))
    print_text(f"  takes about {seconds:.1f} s (a sample was read at {rate / 1e6:.0f} MB a second)")
    for row in rows:
        kinds = ", ".join(row["dtypes"])
        print_text(
            f"  {row['name']}: {row['model_type']}, {row['layers']} layers, "
            f"{row['parameters'] / 1e6:.1f} M parameters, {kinds}, vocabulary "
            f"{row['vocab_size']} ({row['vocabulary'] or 'no tokenizer'}), "
            f"license {row['license'] or 'unknown'}"
        )
    for warning in warnings:
        print_text(f"  warning: {warning}")


@command("verify", "stillroom merge verify merged", "stillroom merge verify merged --all --json")
@click.argument("folder", type=existing_path)
@click.option(
    "--share",
    type=FiniteFloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="Share of the tensors to recompute.",
)
@flag_option("--all", "everything", help="Recompute every tensor.")
@count_option("--seed", default=0, show_default=True, least=0, help="Random seed of the sample.")
@output_options
def verify_command(folder: Path, share: float, everything: bool, seed: int, as_json: bool) -> None:
    """Recompute tensors of a merge and compare the bytes."""
    from stillroom.jobs import LineReporter
    from stillroom.merge.verification import verify_merge

    verification = verify_merge(
        folder,
        share=1.0 if everything else share,
        seed=seed,
        log=LineReporter(),
    )
    if as_json:
        print_json({"path": str(folder), **verification.to_json()})
    verification.check(folder)
    if not as_json:
        print_text(
            f"{folder}: {len(verification.inputs)} inputs are unchanged; "
            f"{len(verification.replayed)} of {verification.tensors} tensors recomputed, with the "
            "same bytes"
        )
