"""``stillroom diffusion convert`` and ``compare``: calls of ``diffusion.evaluation`` and others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.options import (
    command,
    count_option,
    out_folder_option,
    path_option,
    recipe_arguments,
    run_job_recipe,
    run_options,
    settings_option,
)
from stillroom.cli.output import print_json, print_text

if TYPE_CHECKING:
    from stillroom.records import Record

__all__ = [
    "compare_command",
    "convert_command",
]


@command(
    "convert",
    "stillroom diffusion convert hub:GSAI-ML/LLaDA-8B-Instruct --out llada",
    "stillroom diffusion convert ./qwen --out converted --records records.jsonl --steps 500",
    "stillroom diffusion convert ./qwen --out blocks --records records.jsonl --block-size 16",
)
@click.argument("checkpoint")
@out_folder_option
@path_option("--records", help="Records to train an autoregressive checkpoint on.")
@count_option("--steps", default=500, help="Number of optimizer steps.")
@count_option(
    "--block-size",
    help="Block size of block-causal attention, grown from 1; default full attention.",
)
@click.option(
    "--shift/--no-shift",
    default=None,
    help="Predict the next token at each position; by default as the checkpoint does.",
)
@count_option(
    "--anneal-steps", default=0, least=0, help="Steps over which causal attention becomes full."
)
@settings_option("--set", "overrides", help="Setting of the recipe; may be repeated.")
@run_options
def convert_command(
    checkpoint: str,
    out: Path,
    records: Path | None,
    block_size: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert a published diffusion or an autoregressive checkpoint to a diffusion model.

    A diffusion checkpoint of a published layout is rewritten with standard names and needs no
    records. An autoregressive one gets a mask token and is trained on records; `stillroom new
    diffusion.train` lists more settings.
    """
    from stillroom.diffusion.model.initialization import (
        convert_checkpoint,
        describe_expected_quality,
    )

    if records is None:
        _refuse_unused_options(block_size, options)
        summary = convert_checkpoint(checkpoint, out, overwrite=options["overwrite"])
        if as_json:
            print_json({"out": str(out), "start": summary})
        else:
            print_text(f"{out}: {summary}")
        return
    recipe = _build_recipe(checkpoint, records, block_size, options)
    artifact = run_job_recipe(recipe, out, options)
    details = artifact.details
    tokens = int(details["train"]["tokens"])
    expected = describe_expected_quality(tokens, by_blocks=block_size is not None)
    if as_json:
        shown = {name: details[name] for name in ("start", "before", "after")}
        more = {"tokens": tokens, "expect": expected}
        print_json({"out": str(out), "digest": artifact.digest, **shown, **more})
        return
    print_text(f"{out}: {artifact.kind}, digest {artifact.digest[:16]}, from {details['start']}")
    if details["after"]:
        before, after = details["before"], details["after"]
        print_text(
            f"held-out bound {before['nats_per_token']:.3f} before, "
            f"{after['nats_per_token']:.3f} after (error {after['error']:.3f}), nats per token"
        )
    print_text(expected)


def _refuse_unused_options(block_size: int | None, options: Mapping[str, Any]) -> None:
    """Refuse training options when nothing is trained."""
    idle = {
        "--block-size": block_size is not None,
        "--shift": options["shift"] is not None,
        "--anneal-steps": options["anneal_steps"] > 0,
        "--set": bool(options["overrides"]),
    }
    named = ", ".join(name for name, is_given in idle.items() if is_given)
    if named:
        raise click.UsageError(f"without --records nothing is trained, and {named} has no effect")


def _build_recipe(
    checkpoint: str, records: Path, block_size: int | None, options: Mapping[str, Any]
) -> Any:
    from stillroom.recipes import dump_recipe, parse_recipe
    from stillroom.recipes.loader import build_recipe

    anneal_steps, overrides = options["anneal_steps"], options["overrides"]
    if block_size is not None and anneal_steps:
        raise click.UsageError("give either --block-size or --anneal-steps")
    attention: dict[str, Any] = {"name": "full", "anneal_steps": anneal_steps}
    if block_size is not None:
        growth = [size for size in (1, 4) if size < block_size]
        attention = {"name": "block_causal", "block_size": block_size, "growth": growth}
    settings: dict[str, Any] = {
        "version": 1,
        "kind": "diffusion.train",
        "model": checkpoint,
        "records": str(records.absolute()),
        "attention": attention,
        "logit_shift": options["shift"],
        "padding": {"multiple": block_size} if block_size and block_size > 1 else None,
        "train": {"steps": options["steps"], "learning_rate": 2e-4},
    }
    built = build_recipe(settings, "command line", folder=Path.cwd())
    return parse_recipe(dump_recipe(built), "command line", overrides) if overrides else built


@command(
    "compare",
    "stillroom diffusion compare recipes/diffusion-scratch.yaml --out both",
    'stillroom diffusion compare facts.yaml --out both --facts "{a} is {b} ." train.steps=2000',
    "stillroom diffusion compare facts.yaml --out both --ask same=test.jsonl "
    "--ask turned=back.jsonl",
)
@recipe_arguments
@out_folder_option
@click.option(
    "--facts",
    default="",
    metavar="TEMPLATE",
    help="Template of the facts in the records, such as '{a} is {b} .': tested in both directions.",
)
@click.option(
    "--ask",
    multiple=True,
    metavar="NAME=RECORDS",
    help="Records whose answers both models generate, as reversed=test.jsonl; may be repeated.",
)
@count_option("--most", default=200, help="Number of records and facts tested.")
@run_options
def compare_command(
    recipe: Path,
    overrides: tuple[str, ...],
    out: Path,
    facts: str,
    ask: tuple[str, ...],
    most: int,
    as_json: bool,
    **options: bool,
) -> None:
    """Train a diffusion model and its autoregressive twin, and compare them.

    The twin has the same network, records, batch size and seed, and as many steps as give the same
    compute. With --resume, finished models are not trained again.
    """
    from stillroom.diffusion.evaluation.comparison import (
        compare_models,
        find_facts,
        refuse_other_artifact,
        write_comparison,
    )
    from stillroom.diffusion.jobs.autoregressive import derive_baseline_recipe
    from stillroom.diffusion.jobs.train import DiffusionTrainRecipe
    from stillroom.errors import RecipeError
    from stillroom.recipes import load_recipe
    from stillroom.train.data import split_records

    loaded = load_recipe(recipe, overrides)
    if not isinstance(loaded, DiffusionTrainRecipe):
        raise RecipeError(
            f"a recipe of kind {loaded.kind} trains no diffusion model",
            code="recipe.wrong-kind",
            where=str(recipe),
            expected="kind: diffusion.train",
            next="stillroom new diffusion.train",
        )
    questions = _read_questions(ask)
    if facts:  # a template without matches is reported before training
        find_facts(split_records(Path(loaded.records)).train, facts)
    refuse_other_artifact(out)
    out.mkdir(parents=True, exist_ok=True)
    recipes = {"diffusion": loaded, "autoregressive": derive_baseline_recipe(loaded)}
    for name, twin in recipes.items():
        run_job_recipe(twin, out / name, options)
    report = compare_models(
        out / "diffusion",
        out / "autoregressive",
        loaded,
        template=facts,
        questions=questions,
        most=most,
    )
    write_comparison(report, out, {"facts": facts, "ask": list(ask), "most": most})
    if as_json:
        print_json({"out": str(out), "metrics": [m.to_json() for m in report.metrics.values()]})
        return
    for metric in report.metrics.values():
        note = f"  ({metric.note})" if metric.note else ""
        print_text(f"{metric.name:34} {metric.value:.4g} (n={metric.n}){note}")
    print_text(f"report   {out / 'report.html'}")


def _read_questions(words: tuple[str, ...]) -> dict[str, list[Record]]:
    """Return the records of each ``NAME=RECORDS``, read before training."""
    from stillroom.records import read_records

    questions: dict[str, list[Record]] = {}
    for argument in words:
        name, _, path = argument.partition("=")
        if not name or not path or name in questions:
            raise click.BadParameter(
                f"{argument!r} is not NAME=RECORDS with a unique name", param_hint="--ask"
            )
        questions[name] = list(read_records(Path(path)))
    return questions
