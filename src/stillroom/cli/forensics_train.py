"""``stillroom forensics train``: a detector, learned by recipe."""

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
  stillroom forensics train recipes/forensics-detector.yaml --out detector
  stillroom forensics train mine.yaml --out sbi faces.folder=people detector.train.epochs=20
""",
)
@click.argument("recipe", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=existing_path, required=True, help="The folder of the detector.")
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
    """Learn a detector from a recipe.

    The recipe is of kind forensics and has the group 'detector'. The same as `stillroom run`, and
    says what it came to on people it never saw. The model card in output/README.md says where it is
    blind.
    """
    from stillroom.errors import RecipeError
    from stillroom.flow import run_recipe
    from stillroom.forensics.recipe import ForensicsRecipe
    from stillroom.jobs import choose_reporter
    from stillroom.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    if not isinstance(loaded, ForensicsRecipe) or loaded.detector is None:
        raise RecipeError(
            "the recipe learns no detector",
            code="recipe.wrong-kind",
            where=str(recipe),
            expected="kind: forensics with the group 'detector'",
            next="stillroom new forensics/cnn > detector.yaml",
        )
    artifact = run_recipe(
        loaded, out, resume=resume, overwrite=overwrite, reporter=choose_reporter(quiet=quiet)
    )
    about = artifact.details["detector"]
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, "detector": dict(about)})
        return
    click.echo(f"{out}: {artifact.kind}, digest {artifact.digest[:16]}")
    for name, metric in about["figures"]["auc"].items():
        click.echo(f"area under the curve, {name:8} {metric['value']:.3f}")
    learned, domain = about["learned"], about["domain"]
    click.echo(f"learned  {learned['name']}, {learned['count']} in all, {learned['digest'][:16]}")
    kept = domain["tried"]["as they are"]["value"]
    click.echo(f"knows    {kept:.1%} of what test people show; strangers are inconclusive")
    if about["audit"]["leak"]:
        click.echo(f"leaks    {about['audit']['leak']}: check calls all it says inconclusive")
    for line in about["blind"]:
        click.echo(f"blind    {line}")
    click.echo(f"use      stillroom forensics check FILE --detector {out}")
