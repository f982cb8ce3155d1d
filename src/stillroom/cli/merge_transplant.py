"""``stillroom merge transplant``: give a model the tokenizer of another."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import existing_path, job_options, json_option, print_json

__all__ = ["command"]


@click.command(
    "transplant",
    epilog="""
\b
Examples:
  stillroom merge transplant ./donor ./target --out ./target-with-donors-tokens
  stillroom merge transplant hub:Qwen/Qwen3-0.6B ./target --k 32 --dry-run --out ./made
""",
)
@click.argument("donor")
@click.argument("target")
@click.option("--out", type=existing_path, required=True, help="The folder of the checkpoint.")
@click.option(
    "--k", type=click.IntRange(min=1), default=64, show_default=True, help="Most tokens of a sum."
)
@click.option("--dry-run", is_flag=True, help="Print what it would do; write nothing.")
@json_option
@job_options
def command(
    donor: str,
    target: str,
    out: Path,
    k: int,
    dry_run: bool,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Give TARGET the tokenizer of DONOR, without training.

    The same as a recipe with the method transplant, TARGET as its base and DONOR as its model.
    """
    from stillroom.cli.talk import tell_run
    from stillroom.flow import run_recipe
    from stillroom.jobs import choose_reporter
    from stillroom.merge.loading import transplant_recipe
    from stillroom.merge.plan import plan_merge

    recipe = transplant_recipe(donor, target, k)
    if dry_run:
        plan = plan_merge(recipe)
        if as_json:
            print_json({"plan": plan.to_json()})
        else:
            click.echo(str(plan))
        return
    artifact = run_recipe(
        recipe, out, resume=resume, overwrite=overwrite, reporter=choose_reporter(quiet=quiet)
    )
    if as_json:
        print_json({"out": str(out), "kind": artifact.kind, "digest": artifact.digest})
    else:
        tell_run(out, artifact)
