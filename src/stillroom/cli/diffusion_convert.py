"""``stillroom diffusion convert``: a checkpoint that says it is a diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.options import existing_path, job_options, json_option, print_json

__all__ = ["command"]


@click.command(
    "convert",
    epilog="""
\b
Examples:
  stillroom diffusion convert hub:GSAI-ML/LLaDA-8B-Instruct --out llada
  stillroom diffusion convert ./qwen --out converted --records records.jsonl --steps 500
  stillroom diffusion convert ./qwen --out blocks --records records.jsonl --block-size 16
""",
)
@click.argument("checkpoint")
@click.option("--out", type=existing_path, required=True, help="The folder of the checkpoint.")
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    default=None,
    help="Records to train an autoregressive checkpoint on.",
)
@click.option("--steps", type=click.IntRange(min=1), default=500, help="Optimizer steps.")
@click.option(
    "--block-size",
    type=click.IntRange(min=1),
    default=None,
    help="Attention by blocks of so many tokens, grown from 1; without it attention is full.",
)
@click.option(
    "--shift/--no-shift",
    default=None,
    help="Whether a state predicts the next token; by default what the start does.",
)
@click.option(
    "--anneal-steps",
    type=click.IntRange(min=0),
    default=0,
    help="Steps over which causal attention becomes full.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting of the recipe."
)
@json_option
@job_options
def command(
    checkpoint: str,
    out: Path,
    records: Path | None,
    steps: int,
    block_size: int | None,
    shift: bool | None,
    anneal_steps: int,
    overrides: tuple[str, ...],
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Make a diffusion checkpoint of another: of any layout, or autoregressive.

    A checkpoint of a published layout is written in stock terms, and needs no records. An
    autoregressive one gets a mask token and is trained on records; `stillroom new diffusion` says
    what more can be set.
    """
    from stillroom.diffusion.expecting import expect_of
    from stillroom.flow import run_recipe
    from stillroom.jobs import choose_reporter

    if records is None:
        _refuse_idle(block_size, shift, anneal_steps, overrides)
        said = _rewrite(checkpoint, out, overwrite=overwrite)
        if as_json:
            print_json({"out": str(out), "start": said})
        else:
            click.echo(f"{out}: {said}")
        return
    recipe = _recipe(checkpoint, records, steps, block_size, shift, anneal_steps, overrides)
    artifact = run_recipe(
        recipe, out, resume=resume, overwrite=overwrite, reporter=choose_reporter(quiet=quiet)
    )
    details = artifact.details
    tokens = int(details["train"]["tokens"])
    expected = expect_of(tokens, by_blocks=block_size is not None)
    if as_json:
        kept = {name: details[name] for name in ("start", "before", "after")}
        more = {"tokens": tokens, "expect": expected}
        print_json({"out": str(out), "digest": artifact.digest, **kept, **more})
        return
    click.echo(f"{out}: {artifact.kind}, digest {artifact.digest[:16]}, from {details['start']}")
    if details["after"]:
        before, after = details["before"], details["after"]
        click.echo(
            f"held-out bound {before['nats_per_token']:.3f} before, "
            f"{after['nats_per_token']:.3f} after (error {after['error']:.3f}), nats a token"
        )
    click.echo(expected)


def _refuse_idle(
    block_size: int | None, shift: bool | None, anneal_steps: int, overrides: tuple[str, ...]
) -> None:
    """Refuse options of a training that there is none of."""
    idle = {
        "--block-size": block_size is not None,
        "--shift": shift is not None,
        "--anneal-steps": anneal_steps > 0,
        "--set": bool(overrides),
    }
    named = ", ".join(name for name, is_given in idle.items() if is_given)
    if named:
        raise click.UsageError(f"without --records nothing is trained, and {named} does nothing")


def _recipe(
    checkpoint: str,
    records: Path,
    steps: int,
    block_size: int | None,
    shift: bool | None,
    anneal_steps: int,
    overrides: tuple[str, ...],
) -> Any:
    from stillroom.recipes import dump_recipe, parse_recipe
    from stillroom.recipes.loading import build_recipe

    growth = [size for size in (1, 4) if block_size is not None and size < block_size]
    said: dict[str, Any] = {
        "version": 1,
        "kind": "diffusion",
        "start": checkpoint,
        "records": str(records.absolute()),
        "attention": "full" if block_size is None else "block_causal",
        "block_size": block_size,
        "block_growth": growth,
        "logit_shift": shift,
        "anneal_steps": anneal_steps,
        "answers": {"pad_multiple": block_size or 1},
        "train": {"steps": steps, "learning_rate": 2e-4},
    }
    built = build_recipe(said, "command line", folder=Path.cwd())
    return parse_recipe(dump_recipe(built), "command line", overrides) if overrides else built


def _rewrite(checkpoint: str, out: Path, *, overwrite: bool) -> str:
    """Write a diffusion checkpoint of a published layout in stock terms."""
    from stillroom.diffusion.starting import rewrite_checkpoint

    return rewrite_checkpoint(checkpoint, out, overwrite=overwrite)
