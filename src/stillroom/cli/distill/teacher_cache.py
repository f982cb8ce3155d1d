"""``stillroom distill capture``, ``import`` and ``verify``: caches of teacher outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from stillroom.cli.options import (
    FiniteFloatRange,
    command,
    count_option,
    existing_path,
    flag_option,
    output_options,
    path_option,
    quiet_option,
    recipe_arguments,
    seed_option,
)
from stillroom.cli.output import print_json

if TYPE_CHECKING:
    from stillroom.distill.jobs.logits import LogitsRecipe

__all__ = [
    "capture_command",
    "import_command",
    "verify_command",
]


@command(
    "capture",
    "stillroom distill capture recipes/distill-forward-kl.yaml --out teacher-cache --estimate",
    "stillroom distill capture my.yaml targets.mode=sampled --out teacher-cache",
)
@recipe_arguments
@path_option("--out", required=True, help="Cache folder.")
@flag_option("--estimate", help="Print coverage, size and bias; capture nothing.")
@quiet_option
@output_options
def capture_command(
    recipe: Path, overrides: tuple[str, ...], out: Path, estimate: bool, quiet: bool, as_json: bool
) -> None:
    """Fill a teacher cache for a recipe without training.

    Cached records are not captured again: repeat the command after an interruption, or with other
    records. Recipes use the cache as targets.cache.
    """
    from stillroom.distill.teachers.capture import capture_recipe
    from stillroom.errors import RecipeError
    from stillroom.jobs import choose_reporter
    from stillroom.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    if loaded.kind != "distill.logits":
        raise RecipeError(
            f"a recipe of kind {loaded.kind} has no local teacher whose distributions are stored",
            code="recipe.wrong-kind",
            where=str(recipe),
            expected="kind: distill.logits",
            next="stillroom new distill.logits",
        )
    filled = capture_recipe(
        cast("LogitsRecipe", loaded),
        out,
        only_estimate=estimate,
        reporter=choose_reporter(quiet=quiet),
    )
    if as_json:
        print_json({"out": str(out), **filled.to_json()})
        return
    if estimate:
        click.echo(f"{out}: {filled.before}")
        click.echo(str(filled.cost) if filled.cost else "nothing is missing")
        return
    cache = filled.cache
    click.echo(f"{out}: {cache['records']} records, {cache['positions']} positions")


@command(
    "import",
    "stillroom distill import logprobs.jsonl --format axolotl --teacher ./teacher "
    "--out teacher-cache",
    "stillroom distill import ./sampled --format distillkit --teacher ./teacher "
    "--out teacher-cache",
)
@click.argument("file", type=existing_path)
@click.option(
    "--format", "format", type=click.Choice(["axolotl", "distillkit"]), required=True, help="Whose."
)
@click.option("--teacher", required=True, help="Checkpoint of the teacher.")
@click.option(
    "--tokenizer",
    default="",
    help="Checkpoint with the tokenizer of the ids; default the teacher.",
)
@path_option("--out", required=True, help="Cache folder.")
@click.option(
    "--temperature",
    type=FiniteFloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Temperature by which the teacher's logits were divided.",
)
@click.option("--license", default="", help="License of the teacher; default from its card.")
@click.option(
    "--logprob-dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Data type of the stored values.",
)
@output_options
def import_command(file: Path, out: Path, as_json: bool, **settings: Any) -> None:
    """Import log-probabilities captured elsewhere into a teacher cache.

    FILE is axolotl's JSON lines with input_ids and target_token_ids, target_logprobs, target_mask
    (or logprobs), or DistillKit's parquet file or folder with its compression_config.yaml. Check it
    afterwards: stillroom distill verify OUT.
    """
    from stillroom.distill.logit_cache.importer import import_cache

    report = import_cache(file, out, say=lambda line: click.echo(line, err=True), **settings)
    if as_json:
        print_json({"out": str(out), **report.to_json()})
        return
    click.echo(f"{out}: {report}")


@command(
    "verify",
    "stillroom distill verify teacher-cache",
    "stillroom distill verify teacher-cache --teacher hub:HuggingFaceTB/SmolLM2-135M --records 32",
)
@click.argument("cache", type=existing_path)
@click.option("--teacher", default="", help="Checkpoint of the teacher; default the recorded one.")
@count_option(
    "--records",
    default=8,
    show_default=True,
    least=0,
    help="Number of records to score again; 0 checks digests only.",
)
@seed_option
@click.option(
    "--tolerance",
    type=FiniteFloatRange(min=0),
    help="Largest difference in nats; default by the cache's precision.",
)
@output_options
def verify_command(
    cache: Path, teacher: str, records: int, seed: int, tolerance: float | None, as_json: bool
) -> None:
    """Check a teacher cache, and score a sample of it again.

    Every record's digest is recomputed; then the teacher scores some records again, and the largest
    difference is printed. The command fails if it exceeds the tolerance.
    """
    from stillroom.distill.logit_cache.capture import verify_cache

    verification = verify_cache(
        cache,
        teacher=teacher,
        records=records,
        seed=seed,
        tolerance=tolerance,
        say=lambda line: click.echo(line, err=True),
    )
    if as_json:
        print_json({"cache": str(cache), **verification.to_json()})
    else:
        click.echo(str(verification))
    verification.refuse_apart(cache)
