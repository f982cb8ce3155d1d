"""``stillroom distill preflight``, ``align``, ``prune`` and ``texts``: work before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from stillroom.cli.options import (
    FiniteFloat,
    build_job_recipe,
    command,
    count_option,
    existing_path,
    flag_option,
    max_tokens_option,
    out_folder_option,
    output_options,
    path_option,
    read_job_options,
    recipe_arguments,
    run_job_recipe,
    run_options,
)
from stillroom.cli.output import print_json

if TYPE_CHECKING:
    from stillroom.records.origin import OriginKind

__all__ = [
    "align_command",
    "preflight_command",
    "prune_command",
    "texts_command",
]


@command(
    "preflight",
    "stillroom distill preflight recipes/distill-forward-kl.yaml",
    "stillroom distill preflight my.yaml --json student=./other",
)
@recipe_arguments
@path_option("--out", default=Path("run"), help="Planned output folder.")
@output_options
def preflight_command(recipe: Path, overrides: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Check a distillation for problems before it starts.

    Checks machine, records, tokenizers, chat templates and end tokens, and compares teacher and
    student on held-out records. Checkpoints on a hub are downloaded. Nothing is written.
    """
    from stillroom.errors import RecipeError
    from stillroom.flow import preflight_recipe
    from stillroom.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    flight = preflight_recipe(loaded, out, loads=True, fetch=True)
    if flight is None:
        raise RecipeError(
            f"a recipe of kind {loaded.kind} has no preflight",
            code="recipe.wrong-kind",
            where=str(recipe),
            expected="a kind of distillation that trains: stillroom list kinds",
            next=f"stillroom check {recipe}",
        )
    if as_json:
        print_json(flight.to_json())
    else:
        for line in flight.lines():
            click.echo(line)
    flight.raise_errors()


@command(
    "align",
    "stillroom distill align hub:HuggingFaceTB/SmolLM2-135M-Instruct ./student notes.txt",
    "stillroom distill align ./teacher ./student/tokenizer.json records.jsonl --json",
)
@click.argument("teacher")
@click.argument("student")
@click.argument("files", type=existing_path, nargs=-1, required=True, metavar="FILE...")
@output_options
def align_command(teacher: str, student: str, files: tuple[Path, ...], as_json: bool) -> None:
    """Show how well two tokenizers align on your texts.

    TEACHER and STUDENT are checkpoints or tokenizer.json files. A FILE of records (.jsonl,
    .parquet) is rendered with both chat templates; any other file is read as one UTF-8 text.
    """
    from stillroom.distill.cross_tokenizer.report import align_files
    from stillroom.distill.data.plain_text import open_tokenizer

    def say(line: str) -> None:
        click.echo(line, err=True)

    sides = [open_tokenizer(reference, say=say) for reference in (teacher, student)]
    report, missed = align_files(sides[0], sides[1], files)
    if as_json:
        print_json(report.to_json() | {"messages_missed": missed})
        return
    click.echo(str(report))
    if missed:
        click.echo(f"{missed} messages occur in one rendering only and were left out")


@command(
    "prune",
    "stillroom distill prune ./teacher --records r.jsonl --out student --max-parameters 0.6",
    "stillroom distill prune ./teacher --records r.jsonl --out student --hidden-size 432",
)
@click.argument("teacher")
@path_option("--records", required=True, help="Calibration records for the teacher.")
@out_folder_option
@click.option(
    "--max-parameters",
    type=FiniteFloat(),
    help="Share of the teacher's parameters; default 0.6, or 1 if a size is given.",
)
@click.option(
    "--prune",
    type=click.Choice(["depth", "inner", "width", "both"]),
    default="depth",
    help="Dimensions reduced to fit: layers, also the feed-forward size, also the hidden size, "
    "or all three.",
)
@count_option("--layers", help="Number of layers to keep.")
@count_option("--hidden-size", help="Hidden size.")
@count_option("--intermediate-size", help="Feed-forward size.")
@count_option("--attention-heads", help="Number of query heads.")
@count_option("--kv-heads", help="Number of key-value heads.")
@click.option(
    "--choose",
    type=click.Choice(["influence", "even", "loss", "kl", "contiguous"]),
    default="influence",
    help="Method of choosing layers.",
)
@flag_option("--iterative", help="With loss or kl: measure again after each dropped layer.")
@flag_option("--no-rescale-norms", help="Keep the weights of the norms unchanged.")
@count_option("--calibration-records", default=16, help="Number of records, from the first.")
@max_tokens_option
@run_options
def prune_command(
    teacher: str,
    records: Path,
    out: Path,
    max_tokens: int,
    no_rescale_norms: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a smaller student from a teacher's own layers, heads and channels.

    The student is an ordinary checkpoint in OUT/output, not yet trained; distill into it with a
    recipe whose student is OUT, or give the same sizes in a recipe's student settings.
    """
    from stillroom.distill.jobs.prune import PruneRecipe
    from stillroom.distill.pruning.job import PruningReport
    from stillroom.distill.settings import PruneSettings

    student = {name: value for name, value in options.items() if name in PruneSettings.model_fields}
    if student["max_parameters"] is None:
        sizes = ("layers", "hidden_size", "intermediate_size", "attention_heads", "kv_heads")
        is_sized = any(student[name] is not None for name in sizes)
        student["max_parameters"] = 1.0 if is_sized else 0.6
    recipe = build_job_recipe(
        PruneRecipe,
        teacher=teacher,
        records=records,
        student={**student, "rescale_norms": not no_rescale_norms},
        max_tokens=max_tokens,
    )
    artifact = run_job_recipe(recipe, out, options)
    report = PruningReport.read(out / "output")
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, **report.summarize()})
        return
    click.echo(str(report))
    click.echo(f"{out}: {artifact.kind}, digest {artifact.digest[:16]}")


@command(
    "texts",
    "stillroom distill texts ./documents --tokenizer ./teacher --out texts",
    "stillroom distill texts play.txt --tokenizer ./teacher --out texts --kind human "
    "--max-tokens 256",
)
@click.argument("documents", type=existing_path)
@click.option("--tokenizer", required=True, help="Teacher whose tokenizer counts tokens.")
@out_folder_option
@count_option(
    "--max-tokens", default=512, show_default=True, help="Maximum number of tokens of a record."
)
@click.option(
    "--held-out",
    type=FiniteFloat(),
    default=0.1,
    show_default=True,
    help="Held-out share: whole documents if there are ten or more, else the end of each.",
)
@click.option(
    "--kind",
    type=click.Choice(["human", "synthetic", "unknown"]),
    default="unknown",
    show_default=True,
    help="Origin of the documents.",
)
@click.option("--license", "license_name", default="", help="License of the documents.")
@run_options
def texts_command(
    documents: Path,
    tokenizer: str,
    out: Path,
    max_tokens: int,
    held_out: float,
    kind: str,
    license_name: str,
    as_json: bool,
    **options: bool,
) -> None:
    """Cut documents into records of plain training text.

    Use OUT as the records of a distillation. Each record refers to the bytes of its document.
    """
    from stillroom.distill.data.plain_text import ChunkingPlan, chunk_documents
    from stillroom.records import Origin

    origin = Origin(cast("OriginKind", kind), (), license_name)
    plan = ChunkingPlan(documents, tokenizer, max_tokens, held_out, origin)
    artifact, counts = chunk_documents(plan, out, **read_job_options(options))
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, **counts.to_json()})
        return
    click.echo(str(counts))
    click.echo(f"{out}: {artifact.kind}, digest {artifact.digest[:16]}")
