"""``stillroom make``, ``run``, ``check`` and ``new``: recipes and the jobs that they describe."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stillroom.cli.completion import complete_recipes
from stillroom.cli.options import (
    command,
    debug_option,
    existing_path,
    flag_option,
    out_folder_option,
    output_options,
    path_option,
    read_job_options,
    recipe_arguments,
    run_job_recipe,
    run_options,
)
from stillroom.cli.output import print_json, print_json_text, print_text
from stillroom.errors import RecipeError

__all__ = [
    "check_command",
    "make_command",
    "new_command",
    "run_command",
]


@command(
    "run",
    "stillroom run recipes/merge-ties.yaml --out merged",
    "stillroom run recipes/merge-ties.yaml --out merged method.density=0.3",
    "stillroom run merge.transplant donor=./donor target=./target --out moved",
)
@recipe_arguments
@out_folder_option
@run_options
def run_command(
    recipe: Path,
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
    **options: bool,
) -> None:
    """Run a recipe of any kind.

    RECIPE is a file, or the name of a kind (stillroom list kinds) whose settings (stillroom new
    KIND) are all given as KEY=VALUE; paths then start at the current folder. Exit code 1 if records
    could not be checked for contamination with test questions.
    """
    from stillroom.cli.results import print_run
    from stillroom.flow import check_inputs
    from stillroom.jobs.preflight import get_process_rank
    from stillroom.recipes import load_recipe, make_setting_locator

    loaded = load_recipe(recipe, overrides)
    if not out.exists():  # a wrong path leaves no unfinished run behind
        check_inputs(loaded, make_setting_locator(recipe, overrides))
    artifact = run_job_recipe(loaded, out, options)
    if get_process_rank() > 0:
        return  # the first process prints
    print_run(out, artifact, as_json=as_json)
    if artifact.details.get("unchecked"):
        raise click.exceptions.Exit(1)


@command(
    "make",
    "stillroom make ./documents --out run",
    "stillroom make ./documents --out run inputs.teacher=hub:HuggingFaceTB/SmolLM2-360M-Instruct",
)
@click.argument("folder", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@path_option(
    "--questions",
    help="Questions by people, to evaluate the result: CSV with question, answer and optional "
    "evidence (the sentence that answers), JSON lines, or SQuAD.",
)
@out_folder_option
@run_options
def make_command(
    folder: Path,
    overrides: tuple[str, ...],
    questions: Path | None,
    out: Path,
    as_json: bool,
    **options: bool,
) -> None:
    """Turn a folder of documents into a model you own.

    Runs the recipe that `stillroom new flow/make` prints: parse and index, generate questions,
    train the reader that quotes answers, and report whether it is worth using. After a change, run
    it again: only changed steps are executed.
    """
    from stillroom.cli.results import print_run
    from stillroom.flow import run_make

    job = read_job_options(options)
    artifact = run_make(folder, out, questions=questions, overrides=overrides, **job)
    if as_json:
        print_json({"run": str(out), "digest": artifact.digest, "details": dict(artifact.details)})
    else:
        print_run(out, artifact)


@command(
    "check",
    "stillroom check recipes/merge-ties.yaml",
    "stillroom check my.yaml --out /mnt/large/run seed=3",
    "stillroom check synth.data_value records=[run] human=human.jsonl",
    "stillroom check recipes/distill-forward-kl.yaml --load",
)
@recipe_arguments
@path_option("--out", default=Path("run"), help="Planned output folder.")
@flag_option(
    "--load",
    help="Of a distillation: also compare teacher and student on held-out records, and download "
    "checkpoints on a hub.",
)
@output_options
def check_command(
    recipe: Path, overrides: tuple[str, ...], out: Path, load: bool, as_json: bool
) -> None:
    """Validate a recipe and estimate memory, disk and time.

    RECIPE is a file, or the name of a kind whose settings are all given as KEY=VALUE.
    Input paths must exist, and files of records and questions begin with readable rows; references
    such as hub:ORG/NAME and addresses are not checked.
    """
    from stillroom.flow import (
        check_inputs,
        estimate_recipe,
        outline_recipe,
        preflight_recipe,
        require_recipe_extras,
    )
    from stillroom.jobs import LineReporter, check_fits, describe_machine
    from stillroom.jobs.preflight import format_size
    from stillroom.recipes import load_recipe, make_setting_locator

    loaded = load_recipe(recipe, overrides)
    check_inputs(loaded, make_setting_locator(recipe, overrides), with_rows=True)
    require_recipe_extras(loaded)
    estimate = estimate_recipe(loaded)
    flight = preflight_recipe(loaded, out, loads=load, fetch=load, machine=False)
    if load and flight is None:
        raise RecipeError(
            f"a recipe of kind {loaded.kind} compares no models before it starts",
            code="recipe.wrong-kind",
            where=str(recipe),
            expected="--load with a kind of distillation that trains: stillroom list kinds",
            next=f"stillroom check {recipe}",
        )
    machine = describe_machine(out)
    outline = outline_recipe(loaded)
    warnings = loaded.describe_unused()
    if as_json:
        print_json(
            {
                "memory_bytes": estimate.memory_bytes,
                "disk_bytes": estimate.disk_bytes,
                "seconds": estimate.seconds,
                "basis": estimate.basis,
                "warnings": warnings,
                **({"graph": outline} if outline else {}),
                **({"preflight": flight.to_json()} if flight else {}),
            }
        )
    else:
        rows = [
            ("memory", format_size(estimate.memory_bytes), machine.memory_bytes),
            ("disk", format_size(estimate.disk_bytes), machine.disk_bytes),
        ]
        for name, needed, free in rows:
            print_text(f"{name:8} about {needed} of {free / 1e9:.1f} GB free")
        print_text(f"time     about {_format_time(estimate.seconds)} on {machine.cores} cores")
        print_text(f"basis    {estimate.basis}")
        for line in outline:
            print_text(line)
        for line in flight.lines() if flight else ():
            print_text(line)
        for line in warnings:
            LineReporter().warn(line)
    if flight:
        flight.raise_errors()
    check_fits(estimate, machine, str(recipe))
    if not as_json:
        print_text(f"{recipe} is valid and fits")


def _format_time(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


@command(
    "new",
    "stillroom new flow/make > make.yaml",
    "stillroom new merge.weights/ties > merge.yaml",
    "stillroom new --schema > recipe.schema.json",
)
@click.argument("what", metavar="[KIND[/METHOD]]", required=False, shell_complete=complete_recipes)
@flag_option("--schema", help="Print the JSON Schema of KIND, or of all kinds, for an editor.")
@debug_option
def new_command(what: str | None, schema: bool) -> None:
    """Print a commented recipe."""
    from stillroom.recipes import recipe_schema, render_template

    kind, slash, method = (what or "").partition("/")
    if schema:
        if slash:
            raise click.UsageError(f"--schema prints the schema of a KIND: leave out '/{method}'")
        schemas = recipe_schema([kind] if kind else [])
        print_json_text(json.dumps(schemas, indent=1, ensure_ascii=False, sort_keys=True))
        return
    if not kind:
        raise click.UsageError("give a KIND, as in 'stillroom new flow/make', or --schema")
    print_text(render_template(kind, method or None), nl=False)
