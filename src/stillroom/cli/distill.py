"""``stillroom distill``: calls of ``distill.logit_cache``, ``distill.data`` and other stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from stillroom.cli.app import command_group
from stillroom.cli.options import (
    FiniteFloat,
    FiniteFloatRange,
    count_option,
    existing_path,
    flag_option,
    out_folder_option,
    output_options,
    path_option,
    quiet_option,
    read_job_options,
    recipe_arguments,
    run_options,
    seed_option,
)
from stillroom.cli.output import print_json, print_text
from stillroom.errors import count_noun

if TYPE_CHECKING:
    from stillroom.distill.jobs.logits import LogitsRecipe
    from stillroom.records.origin import OriginKind

__all__ = [
    "align_command",
    "capture_command",
    "distill_group",
    "import_command",
    "texts_command",
    "verify_command",
]


@command_group(
    "distill",
    "stillroom distill align hub:HuggingFaceTB/SmolLM2-135M-Instruct ./student notes.txt",
    "stillroom distill align ./teacher ./student/tokenizer.json records.jsonl --json",
)
def distill_group() -> None:
    """Distillation: prepare a run, manage logit caches."""


@distill_group.subcommand(
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
        print_text(line, err=True)

    sides = [open_tokenizer(reference, say=say) for reference in (teacher, student)]
    report, missed = align_files(sides[0], sides[1], files)
    if as_json:
        print_json(report.to_json() | {"messages_missed": missed})
        return
    print_text(str(report))
    if missed:
        print_text(f"{missed} messages occur in one rendering only and were left out")


@distill_group.subcommand(
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
    print_text(str(counts))
    print_text(f"{out}: {artifact.kind}, digest {artifact.digest[:16]}")


@distill_group.subcommand(
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
    """Fill the logit cache of a recipe's teacher without training.

    Cached records are not captured again: repeat the command after an interruption, or with other
    records. Recipes use the cache as targets.cache.
    """
    from stillroom.distill.teachers.local import capture_recipe
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
        print_text(f"{out}: {filled.before}")
        print_text(str(filled.cost) if filled.cost else "nothing is missing")
        return
    cache = filled.cache
    print_text(f"{out}: {count_noun(cache['records'], 'record')}, {cache['positions']} positions")


@distill_group.subcommand(
    "import",
    "stillroom distill import logprobs.jsonl --format axolotl --teacher ./teacher "
    "--out teacher-cache",
    "stillroom distill import ./sampled --format distillkit --teacher ./teacher "
    "--out teacher-cache",
)
@click.argument("file", type=existing_path)
@click.option(
    "--format",
    "format",
    type=click.Choice(["axolotl", "distillkit"]),
    required=True,
    help="Tool that wrote the file.",
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
    """Import log-probabilities captured elsewhere into a logit cache.

    FILE is, for axolotl, JSON lines with input_ids, target_token_ids, target_logprobs and
    target_mask (or logprobs); for distillkit, a parquet file, or a folder with its
    compression_config.yaml. Check the cache afterwards: stillroom distill verify OUT.
    """
    from stillroom.distill.logit_cache.importer import import_cache

    report = import_cache(file, out, say=lambda line: print_text(line, err=True), **settings)
    if as_json:
        print_json({"out": str(out), **report.to_json()})
        return
    print_text(f"{out}: {report}")


@distill_group.subcommand(
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
    help="Maximum difference in nats; default: according to the cache's precision.",
)
@output_options
def verify_command(cache: Path, as_json: bool, **settings: Any) -> None:
    """Check a logit cache, and recompute a sample of it.

    Every record's digest is recomputed; then the teacher scores some records again. The largest
    difference is printed; the command fails if it exceeds --tolerance.
    """
    from stillroom.distill.logit_cache.capture import verify_cache

    verification = verify_cache(cache, say=lambda line: print_text(line, err=True), **settings)
    if as_json:
        print_json({"cache": str(cache), **verification.to_json()})
    else:
        print_text(str(verification))
    verification.refuse_apart(cache)
