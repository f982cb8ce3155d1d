"""``stillroom diffusion train``: a recipe of kind diffusion, run."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import existing_path, job_options, json_option, print_json

__all__ = ["command"]


@click.command(
    "train",
    epilog="""
\b
Examples:
  stillroom diffusion train recipes/diffusion-scratch.yaml --out characters
  stillroom diffusion train my.yaml --out trained train.steps=500 schedule=cosine
""",
)
@click.argument("recipe", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=existing_path, required=True, help="The folder of the checkpoint.")
@json_option
@job_options
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Run a recipe of kind diffusion.

    The same as `stillroom run`, and says what the held-out records came to.
    """
    from stillroom.diffusion.recipe import DiffusionRecipe
    from stillroom.errors import RecipeError
    from stillroom.flow import run_recipe
    from stillroom.jobs import choose_reporter
    from stillroom.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    if not isinstance(loaded, DiffusionRecipe):
        raise RecipeError(
            f"kind {loaded.kind} trains no diffusion model",
            code="recipe.wrong-kind",
            where=str(recipe),
            expected="kind: diffusion",
            next="stillroom new diffusion",
        )
    artifact = run_recipe(
        loaded, out, resume=resume, overwrite=overwrite, reporter=choose_reporter(quiet=quiet)
    )
    after = artifact.details["after"]
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, "after": dict(after)})
        return
    click.echo(f"{out}: {artifact.kind}, digest {artifact.digest[:16]}")
    if after:
        name = "bound" if after["is_bound"] else "loss"
        click.echo(
            f"held-out {name} {after['nats_per_token']:.3f} nats a token, error "
            f"{after['error']:.3f}, {after['records']} records"
        )
    if loaded.noising.is_causal:
        click.echo(f"serve    stillroom serve {out}")
    else:
        click.echo(f'write    stillroom diffusion sample {out} "..."')
