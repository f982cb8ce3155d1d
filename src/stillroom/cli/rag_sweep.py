"""``stillroom rag sweep``: which chunker, embedder and way are worth their milliseconds."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.judged import print_report
from stillroom.cli.options import existing_path, job_options, json_option

__all__ = ["command"]


@click.command(
    "sweep",
    epilog="""
\b
Examples:
  stillroom rag sweep recipe.yaml --out swept
  stillroom rag sweep recipe.yaml --out swept --cache cache sweep.measure=recall@5
""",
)
@click.argument("recipe", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=existing_path, required=True, help="The folder of the report.")
@click.option(
    "--cache", type=existing_path, help="Where indexes and vectors are kept for later sweeps."
)
@click.option("--yes", "allow_many", is_flag=True, help="Try more than 24 configurations.")
@json_option
@job_options
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    out: Path,
    cache: Path | None,
    allow_many: bool,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Try chunkers, embedders and ways on judged questions, and say which is worth it.

    The recipe is one of kind rag with a block sweep. The best configuration is chosen on one part
    of the questions and measured on the other; output/best.yaml is its recipe.
    """
    from stillroom.errors import RecipeError
    from stillroom.jobs import choose_reporter
    from stillroom.rag.measuring.sweep_job import run_sweep
    from stillroom.rag.recipe import RagRecipe
    from stillroom.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    if not isinstance(loaded, RagRecipe):
        raise RecipeError(
            f"{recipe} is of kind {loaded.kind}",
            code="rag.sweep-setting",
            expected="kind: rag, with a block sweep",
            next="stillroom new rag prints every setting",
        )
    artifact, report, outcome = run_sweep(
        loaded,
        out,
        cache=cache,
        allow_many=allow_many,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    best = outcome.best.configuration.model_dump(mode="json")
    told = {"best": best, "is_gain": outcome.is_gain}
    print_report(out, artifact, report, as_json=as_json, **told)
