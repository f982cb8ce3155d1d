"""``stillroom merge adapters`` and ``extract``: calls of ``merge.lora``, and their reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.options import (
    FiniteFloat,
    command,
    count_option,
    existing_path,
    out_folder_option,
    output_options,
    overwrite_option,
    refuse_idle_options,
)
from stillroom.cli.output import print_json, print_text

__all__ = [
    "adapters_command",
    "extract_command",
]


@command(
    "adapters",
    "stillroom merge adapters ./lora-a ./lora-b --weight 0.5 --weight 0.5 --out ./lora-ab",
    "stillroom merge adapters ./lora-a ./lora-b --energy 0.99 --out ./lora-ab --json",
)
@click.argument("adapters", nargs=-1, required=True, type=existing_path)
@click.option(
    "--weight",
    "weights",
    type=FiniteFloat(),
    multiple=True,
    help="Weight of each adapter; default 1.",
)
@out_folder_option
@count_option("--rank", help="Maximum rank of a tensor; by default the sum is exact.")
@click.option("--energy", type=FiniteFloat(), help="Share of the squared singular values to keep.")
@click.option("--base", help="Base model; required if adapters contain full tensors.")
@overwrite_option
@output_options
def adapters_command(
    adapters: tuple[Path, ...],
    weights: tuple[float, ...],
    out: Path,
    base: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Add LoRA adapters into one, in low-rank form."""
    from stillroom.merge.lora.adapter import Adapter
    from stillroom.merge.lora.combination import merge_adapters
    from stillroom.merge.tensors.storage import open_checkpoint

    result = merge_adapters(
        [Adapter.open(path) for path in adapters],
        list(weights) or [1.0] * len(adapters),
        out,
        base=open_checkpoint(base) if base else None,
        **settings,
    )
    if as_json:
        print_json({"adapter": result.to_json()})
    else:
        print_text(str(result))


@command(
    "extract",
    "stillroom merge extract ./tuned --base ./base --out ./adapter --rank 32",
    "stillroom merge extract ./tuned --base ./base --out ./vector --as task_vector --json",
)
@click.argument("finetuned")
@click.option("--base", required=True, help="Checkpoint that FINETUNED was fine-tuned from.")
@out_folder_option
@click.option(
    "--as",
    "kind",
    type=click.Choice(["lora", "task_vector"]),
    default="lora",
    help="Output type: an adapter for peft, or the full differences.",
)
@count_option("--rank", help="Maximum rank of a tensor; default 32 without --error.")
@click.option(
    "--error", type=FiniteFloat(), help="Maximum relative error of a tensor, which sets its rank."
)
@click.option(
    "--svd",
    "routine",
    type=click.Choice(["exact", "randomized"]),
    default="exact",
    help="SVD algorithm; randomized is faster on large matrices.",
)
@count_option("--seed", default=0, least=0, help="Random seed of the randomized SVD.")
@overwrite_option
@output_options
def extract_command(
    finetuned: str,
    base: str,
    out: Path,
    kind: str,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Extract a fine-tuning as a LoRA adapter or a task vector.

    FINETUNED minus BASE becomes a LoRA adapter, or a task vector; the error of each layer is
    printed.
    """
    from stillroom.errors import RecipeError
    from stillroom.merge.lora.extraction import extract_lora, extract_task_vector
    from stillroom.merge.tensors.storage import open_checkpoint

    if kind == "task_vector" and (settings["rank"] is not None or settings["error"] is not None):
        raise RecipeError(
            "a task vector is exact: --rank and --error do not apply",
            code="merge.extract-settings",
            expected="--rank or --error with --as lora only",
            next="leave them out, or extract a LoRA",
        )
    if kind == "task_vector":
        refuse_idle_options({"routine", "seed"}, "applies to --as lora only")
    elif settings["routine"] == "exact":
        refuse_idle_options({"seed"}, "needs --svd randomized")
    tuned, start = open_checkpoint(finetuned), open_checkpoint(base)
    if kind == "lora":
        result = extract_lora(tuned, start, out, overwrite=overwrite, **settings)
    else:
        result = extract_task_vector(tuned, start, out, overwrite=overwrite)
    if as_json:
        print_json({"extraction": result.to_json()})
    else:
        print_text(str(result))
