"""``stillroom distill prune``: a smaller student of a teacher's own weights, not yet trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from stillroom.cli.numbers import Finite
from stillroom.cli.options import existing_path, job_options, json_option, print_json

if TYPE_CHECKING:
    from stillroom.distill.recipe import DistillRecipe

__all__ = ["command"]


@click.command(
    "prune",
    epilog="""
\b
Examples:
  stillroom distill prune ./teacher --records r.jsonl --out student --max-parameters 0.6
  stillroom distill prune ./teacher --records r.jsonl --out student --hidden-size 432
""",
)
@click.argument("teacher")
@click.option("--records", required=True, type=existing_path, help="What the teacher is run on.")
@click.option("--out", required=True, type=existing_path, help="The folder of the artifact.")
@click.option(
    "--max-parameters",
    type=Finite(),
    help="Share of the teacher's parameters; default 0.6, or 1 where a size is given.",
)
@click.option(
    "--prune",
    type=click.Choice(["depth", "inner", "width", "both"]),
    default="depth",
    help="What shrinks until it fits: layers, they and the feed-forward size, it and the hidden "
    "size, or all three.",
)
@click.option("--layers", type=click.IntRange(min=1), help="How many layers to keep.")
@click.option("--hidden-size", type=click.IntRange(min=1), help="Channels between layers.")
@click.option("--intermediate-size", type=click.IntRange(min=1), help="Feed-forward channels.")
@click.option("--attention-heads", type=click.IntRange(min=1), help="Query heads of a layer.")
@click.option("--kv-heads", type=click.IntRange(min=1), help="Key-value heads of a layer.")
@click.option(
    "--choose",
    type=click.Choice(["influence", "even", "loss", "kl", "contiguous"]),
    default="influence",
    help="How layers are chosen.",
)
@click.option("--iterative", is_flag=True, help="With loss or kl: measure after each one dropped.")
@click.option("--no-rescale-norms", is_flag=True, help="Leave the norms' weights as they are.")
@click.option(
    "--calibration-records",
    type=click.IntRange(min=1),
    default=16,
    help="How many records, from the first.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=512,
    help="Tokens of a record that are read.",
)
@json_option
@job_options
def command(
    teacher: str,
    records: Path,
    out: Path,
    max_tokens: int,
    no_rescale_norms: bool,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Make a smaller student from a teacher's own layers, heads and channels.

    The student is an ordinary checkpoint in OUT/output, not yet trained; distill into it with a
    recipe whose student is OUT, or say the same sizes in a recipe's student settings.
    """
    from stillroom.distill.prune_job import prune_teacher
    from stillroom.jobs import choose_reporter
    from stillroom.recipes import build_recipe

    sizes = ("layers", "hidden_size", "intermediate_size", "attention_heads", "kv_heads")
    if settings["max_parameters"] is None:
        is_sized = any(settings[name] is not None for name in sizes)
        settings["max_parameters"] = 1.0 if is_sized else 0.6
    recipe = build_recipe(
        {
            "version": 1,
            "kind": "distill",
            "teacher": teacher,
            "records": str(records),
            "student": {**settings, "rescale_norms": not no_rescale_norms},
            "max_tokens": max_tokens,
        },
        folder=Path.cwd(),
    )
    artifact, report = prune_teacher(
        cast("DistillRecipe", recipe),
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, **report.summarize()})
        return
    click.echo(str(report))
    click.echo(f"{out}: {artifact.kind}, digest {artifact.digest[:16]}")
