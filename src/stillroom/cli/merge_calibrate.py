"""``stillroom merge calibrate``: statistics for the methods fisher and regmean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.numbers import Finite, FiniteRange
from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "calibrate",
    epilog="""
\b
Examples:
  stillroom merge calibrate ./a ./b --records a.jsonl --records b.jsonl --for fisher --out stats
  stillroom merge calibrate ./a ./b --records both.jsonl --for regmean --plus-plus --out stats
""",
)
@click.argument("models", nargs=-1, required=True, type=existing_path)
@click.option(
    "--records",
    required=True,
    multiple=True,
    type=existing_path,
    help="One a model, or one for all.",
)
@click.option(
    "--for",
    "method",
    type=click.Choice(["fisher", "regmean"]),
    required=True,
    help="The method that will use them.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder to write.")
@click.option("--plus-plus", is_flag=True, help="RegMean++: inputs from the merged layers before.")
@click.option("--weight", "weights", type=Finite(), multiple=True, help="RegMean++: one a model.")
@click.option(
    "--alpha", type=FiniteRange(0, 1), default=0.9, help="RegMean++: as regmean's setting."
)
@click.option(
    "--labels",
    type=click.Choice(["sampled", "true"]),
    default="sampled",
    help="Fisher: drawn from the model, or the tokens themselves.",
)
@click.option(
    "--max-records",
    type=click.IntRange(min=1),
    default=256,
    help="How many a model, drawn by --seed.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=512,
    help="Tokens of a record that are read.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    help="Which records are drawn; Fisher: and labels.",
)
@click.option("--device", default="auto", help="Where the models run: auto, cpu, cuda, mps.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at --out.")
@json_option
@debug_option
def command(models: tuple[Path, ...], out: Path, as_json: bool, **settings: Any) -> None:
    """Gather what fisher and regmean weigh models by.

    One folder a model is written below --out; name them in method.statistics.
    """
    found = _gather(models, out, settings)
    if as_json:
        print_json(
            {
                "statistics": [
                    {"folder": str(each.folder), "tokens": each.tokens, "model": each.model}
                    for each in found
                ]
            }
        )
    else:
        for each in found:
            click.echo(f"{each.folder}: {each.kind} over {each.tokens} tokens")


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _gather(models: tuple[Path, ...], out: Path, settings: dict[str, Any]) -> list[Any]:
    from stillroom.errors import RecipeError
    from stillroom.merge import calibration
    from stillroom.merge.scoring import draw_records

    files = list(settings["records"])
    if len(files) == 1:
        files *= len(models)
    if len(files) != len(models) or (settings["plus_plus"] and settings["method"] == "fisher"):
        raise RecipeError(
            f"{len(models)} models have {len(files)} files of records"
            if len(files) != len(models)
            else "--plus-plus is RegMean's",
            code="merge.calibration-settings",
            expected="one --records for all, or one a model; --plus-plus with --for regmean only",
            next="correct the command",
        )
    bounds = {"limit": settings["max_records"], "seed": settings["seed"]}
    records = [draw_records(str(file), split="", say=_tell, **bounds) for file in files]
    folders = [out / f"{number}-{model.name}" for number, model in enumerate(models)]
    common = {key: settings[key] for key in ("max_tokens", "device", "overwrite")}
    if settings["plus_plus"]:
        return calibration.gather_grams_of_merge(
            models,
            records,
            folders,
            weights=list(settings["weights"]) or None,
            alpha=settings["alpha"],
            **common,
        )
    found = []
    for model, each, folder in zip(models, records, folders, strict=True):
        if settings["method"] == "fisher":
            drawn = {"labels": settings["labels"], "seed": settings["seed"]}
            found.append(calibration.gather_fisher(model, each, folder, **drawn, **common))
        else:
            found.append(calibration.gather_grams(model, each, folder, **common))
    return found
