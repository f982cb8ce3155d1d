"""``stillroom merge adapters``: LoRA adapters of one base, added up to one adapter."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.numbers import Finite
from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "adapters",
    epilog="""
\b
Examples:
  stillroom merge adapters ./lora-a ./lora-b --weight 0.5 --weight 0.5 --out ./lora-ab
  stillroom merge adapters ./lora-a ./lora-b --energy 0.99 --out ./lora-ab --json
""",
)
@click.argument("adapters", nargs=-1, required=True, type=existing_path)
@click.option(
    "--weight", "weights", type=Finite(), multiple=True, help="One an adapter; default 1."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder to write.")
@click.option(
    "--rank", type=click.IntRange(min=1), help="Most rank of a tensor; without it the sum is exact."
)
@click.option("--energy", type=Finite(), help="Share of the squared singular values that is kept.")
@click.option("--base", help="The base; needed where adapters bring whole tensors.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at --out.")
@json_option
@debug_option
def command(
    adapters: tuple[Path, ...],
    weights: tuple[float, ...],
    out: Path,
    rank: int | None,
    energy: float | None,
    base: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Add LoRA adapters up to one, in their own space."""
    from stillroom.merge.adapter_merge import merge_adapters
    from stillroom.merge.adapters import Adapter
    from stillroom.merge.reading import open_checkpoint

    result = merge_adapters(
        [Adapter.open(path) for path in adapters],
        list(weights) or [1.0] * len(adapters),
        out,
        rank=rank,
        energy=energy,
        base=open_checkpoint(base) if base else None,
        overwrite=overwrite,
    )
    if as_json:
        print_json({"adapter": result.to_json()})
    else:
        click.echo(str(result))
