"""``stillroom merge inspect``, ``search``, ``calibrate``, ``learn``: calls of the room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import click

from stillroom.cli.options import (
    FiniteFloat,
    FiniteFloatRange,
    command,
    count_option,
    device_option,
    existing_path,
    flag_option,
    max_tokens_option,
    out_folder_option,
    output_options,
    overwrite_option,
    path_option,
    paths_option,
    refuse_idle_options,
    seed_option,
)
from stillroom.cli.output import print_json, print_text
from stillroom.errors import count_noun

__all__ = ["calibrate_command", "inspect_command", "learn_command", "search_command"]

_LOSS_OPTIONS = ("max_records", "seed", "max_tokens", "device")


@command(
    "calibrate",
    "stillroom merge calibrate ./a ./b --records a.jsonl --records b.jsonl --for fisher "
    "--out stats",
    "stillroom merge calibrate ./a ./b --records both.jsonl --for regmean --plus-plus --out stats",
)
@click.argument("models", nargs=-1, required=True, type=existing_path)
@paths_option("--records", required=True, help="Records of each model, or one file for all.")
@click.option(
    "--for",
    "method",
    type=click.Choice(["fisher", "regmean"]),
    required=True,
    help="Method that will use the statistics.",
)
@out_folder_option
@flag_option("--plus-plus", help="RegMean++: take inputs from the merged preceding layers.")
@click.option(
    "--weight",
    "weights",
    type=FiniteFloat(),
    multiple=True,
    help="RegMean++: weight of each model.",
)
@click.option(
    "--alpha",
    type=FiniteFloatRange(0, 1),
    default=0.9,
    help="RegMean++: alpha, as in the method regmean.",
)
@click.option(
    "--labels",
    type=click.Choice(["sampled", "true"]),
    default="sampled",
    help="Fisher: labels sampled from the model, or the true tokens.",
)
@count_option(
    "--max-records", default=256, help="Number of records for each model, sampled with --seed."
)
@max_tokens_option
@count_option(
    "--seed", default=0, least=0, help="Random seed of the sample; Fisher: also of the labels."
)
@device_option
@overwrite_option
@output_options
def calibrate_command(models: tuple[Path, ...], out: Path, as_json: bool, **settings: Any) -> None:
    """Compute the statistics that fisher and regmean need.

    Writes one folder for each model below --out; name them in method.statistics.
    """
    statistics = _collect_statistics(models, out, settings)
    _write_artifacts(models, statistics, settings)
    if as_json:
        print_json(
            {
                "statistics": [
                    {
                        "folder": str(statistic.folder),
                        "tokens": statistic.tokens,
                        "model": statistic.model,
                    }
                    for statistic in statistics
                ]
            }
        )
    else:
        for statistic in statistics:
            print_text(f"{statistic.folder}: {statistic.kind} over {statistic.tokens} tokens")


def _collect_statistics(models: tuple[Path, ...], out: Path, settings: dict[str, Any]) -> list[Any]:
    from stillroom.errors import RecipeError
    from stillroom.jobs import LineReporter
    from stillroom.merge.analysis import calibration

    if settings["method"] == "regmean":
        refuse_idle_options({"labels"}, "applies to --for fisher only")
    if not settings["plus_plus"]:
        refuse_idle_options({"weights", "alpha"}, "needs --plus-plus")
    from stillroom.merge.search.scoring import draw_records

    files = list(settings["records"])
    if len(files) == 1:
        files *= len(models)
    if len(files) != len(models) or (settings["plus_plus"] and settings["method"] == "fisher"):
        raise RecipeError(
            f"{len(models)} models have {count_noun(len(files), 'file')} of records"
            if len(files) != len(models)
            else "--plus-plus applies to RegMean only",
            code="merge.calibration-settings",
            expected="one --records for all, or one for each model; --plus-plus with regmean only",
            next="correct the command",
        )
    bounds = {"limit": settings["max_records"], "seed": settings["seed"]}
    warn = LineReporter().warn
    records = [draw_records(str(file), split="", warn=warn, **bounds) for file in files]
    folders = [out / f"{number}-{model.name}" for number, model in enumerate(models)]
    common = {key: settings[key] for key in ("max_tokens", "device", "overwrite")}
    if settings["plus_plus"]:
        return calibration.gather_merged_gram_matrices(
            models,
            records,
            folders,
            weights=list(settings["weights"]) or None,
            alpha=settings["alpha"],
            **common,
        )
    statistics = []
    for model, model_records, folder in zip(models, records, folders, strict=True):
        if settings["method"] == "fisher":
            fisher_settings = {"labels": settings["labels"], "seed": settings["seed"]}
            statistics.append(
                calibration.gather_fisher(model, model_records, folder, **fisher_settings, **common)
            )
        else:
            statistics.append(
                calibration.gather_gram_matrices(model, model_records, folder, **common)
            )
    return statistics


def _write_artifacts(
    models: Sequence[Path], statistics: Sequence[Any], settings: Mapping[str, Any]
) -> None:
    """State what the statistics of each model were made from."""
    from stillroom.checkpoints import Checkpoint
    from stillroom.jobs.job import write_artifact
    from stillroom.provenance import trace_sources

    opened = [Checkpoint.open(model) for model in models]
    named = [("model", one.folder, one.fingerprint, one.license) for one in opened]
    files = list(settings["records"]) * (len(models) if len(settings["records"]) == 1 else 1)
    keys = ("method", "plus_plus", "alpha", "weights", "labels", "max_records", "max_tokens")
    for statistic, own, file in zip(statistics, named, files, strict=True):
        # Inputs of RegMean++ come from layers merged from all models.
        sources = [*(named if settings["plus_plus"] else [own]), ("records", file, "", "")]
        parents, origin = trace_sources("merge.calibration", sources, statistic.folder)
        write_artifact(
            statistic.folder,
            "report",
            parents=parents,
            origin=origin,
            details={key: settings[key] for key in keys},
            seed=settings["seed"],
        )


@command(
    "learn",
    "stillroom merge learn ./base ./a ./b --records tasks.jsonl --out learned.yaml",
    "stillroom merge learn ./base ./a ./b --records tasks.jsonl --objective entropy --json",
)
@click.argument("base")
@click.argument("models", nargs=-1, required=True)
@path_option("--records", required=True, help="Records of all tasks together.")
@path_option("--out", help="Output recipe.")
@click.option(
    "--objective",
    type=click.Choice(["cross_entropy", "entropy"]),
    default="cross_entropy",
    help=(
        "Loss: cross-entropy of the assistant's tokens, or entropy of predictions, which needs "
        "no answers."
    ),
)
@click.option(
    "--group",
    type=click.Choice(["layer", "module", "model"]),
    default="layer",
    help="Tensors that share a coefficient.",
)
@click.option("--start", type=FiniteFloat(), default=0.3, help="Initial value of the coefficients.")
@count_option("--steps", default=100, help="Number of steps.")
@click.option(
    "--learning-rate",
    type=FiniteFloatRange(min=0, min_open=True),
    default=0.01,
    help="Learning rate of Adam.",
)
@count_option("--batch", default=4, help="Records in a batch.")
@max_tokens_option
@count_option("--seed", default=0, least=0, help="Random seed of the split and the batches.")
@device_option
@output_options
def learn_command(
    base: str,
    models: tuple[str, ...],
    records: Path,
    out: Path | None,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Learn the merge coefficients of every layer from records.

    Writes a recipe for task_arithmetic; the gain is measured on held-out records.
    """
    from stillroom.merge.analysis.comparison import open_model
    from stillroom.merge.search.learned_coefficients import CoefficientTraining, learn_coefficients
    from stillroom.merge.tensors.storage import open_checkpoint
    from stillroom.records import read_records

    start = open_checkpoint(base)
    parents = [open_model(model, start) for model in models]
    learning = CoefficientTraining(**settings)
    learned = learn_coefficients(
        start, parents, list(read_records(records)), learning, device=device
    )
    if out is not None:
        from stillroom.merge.search.learned_coefficients import write_recipe

        write_recipe(learned.to_recipe(base, models), out)
        print_text(f"wrote {out}; run it with: stillroom run {out} --out DIR", err=True)
    if as_json:
        print_json({"learned": learned.to_json()})
    else:
        print_text(str(learned))


@command(
    "inspect",
    "stillroom merge inspect ./base ./tuned-a ./tuned-b --out ./inspection",
    "stillroom merge inspect ./base ./tuned-a ./adapter-b --records held-out.jsonl --json",
)
@click.argument("base")
@click.argument("models", nargs=-1, required=True)
@path_option("--out", help="Output folder for the page and the data.")
@click.option(
    "--density",
    type=FiniteFloat(),
    default=0.2,
    help="Share of parameters that trimming would keep.",
)
@path_option(
    "--records",
    help="Also measure the loss at 11 points between each pair of models, on these records.",
)
@count_option("--max-records", default=200, help="Number of records, sampled with --seed.")
@seed_option
@max_tokens_option
@device_option
@overwrite_option
@output_options
def inspect_command(
    base: str,
    models: tuple[str, ...],
    out: Path | None,
    density: float,
    records: Path | None,
    max_records: int,
    seed: int,
    max_tokens: int,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Show where the task vectors of models agree and conflict.

    MODELS are checkpoints, or adapters, that were fine-tuned from BASE.
    """
    from dataclasses import replace

    from stillroom.merge.analysis.comparison import inspect_models, open_model

    if records is None:
        refuse_idle_options(_LOSS_OPTIONS, "needs --records, on which losses are measured")
    if out is None:
        refuse_idle_options({"overwrite"}, "needs --out")
    from stillroom.merge.tensors.storage import open_checkpoint

    start = open_checkpoint(base)
    parents = [open_model(model, start) for model in models]
    inspection = inspect_models(start, parents, density=density)
    if records is not None:
        from stillroom.jobs import LineReporter
        from stillroom.merge.analysis.comparison import measure_loss_path
        from stillroom.merge.search.scoring import draw_records

        sample = draw_records(
            str(records),
            split="",
            limit=max_records,
            seed=seed,
            warn=LineReporter().warn,
        )
        paths = [
            measure_loss_path(
                (inspection.parents[i], inspection.parents[j]),
                (parents[i].weights, parents[j].weights),
                sample,
                max_tokens=max_tokens,
                device=device,
            )
            for i, j in combinations(range(len(parents)), 2)
        ]
        inspection = replace(inspection, paths=tuple(paths))
    if out is not None:
        from stillroom.merge.analysis.report import write_inspection

        page = write_inspection(inspection, out, overwrite=overwrite)
        print_text(f"wrote {page}", err=True)
    if as_json:
        print_json({"inspection": inspection.to_json()})
    else:
        print_text(str(inspection))


@command("search", "stillroom merge search merged", "stillroom merge search merged --trials 20")
@click.argument("folder", type=existing_path)
@count_option(
    "--trials", default=10, show_default=True, least=0, help="Number of the best trials to show."
)
@output_options
def search_command(folder: Path, trials: int, as_json: bool) -> None:
    """Show the trials and the result of a merge search."""
    from stillroom.merge.search.run import format_search, read_search_result

    result = read_search_result(folder)
    if as_json:
        print_json({"path": str(folder), "search": result})
        return
    print_text(format_search(result))
    print_text(
        f"\n{result['objective']} on the {result['records']['choose']} records of the final choice:"
    )
    for row in result["candidates"]:
        print_text(f"  {_format_value(row)}  {row['name']}")
    print_text(f"\nbest of {result['tried']} trials on {result['records']['search']} records:")
    for row in _select_best(result["trials"], trials, result["best_on_search"]):
        print_text(
            f"  {_format_value(row)}  trial {row['number']}  {_format_changes(row['changes'])}"
        )


def _select_best(
    rows: Sequence[Mapping[str, Any]], count: int, best: float
) -> list[Mapping[str, Any]]:
    """Return the best rows, ordered by the distance to the best value, for either direction."""
    good = [row for row in rows if row["value"] is not None]
    return sorted(good, key=lambda row: (abs(row["value"] - best), row["number"]))[:count]


def _format_value(row: Mapping[str, Any]) -> str:
    return "  failed" if row["value"] is None else f"{row['value']:8.4f}"


def _format_changes(changes: Mapping[str, Any]) -> str:
    parts = [f"{name}={value:.4g}" for name, value in changes["method"].items()]
    for number, model_changes in changes["models"].items():
        parts += [f"models.{number}.{name}={value:.4g}" for name, value in model_changes.items()]
    for entry in changes["parameters"]:
        values = entry["value"] if isinstance(entry["value"], list) else [entry["value"]]
        owner = "" if entry["model"] is None else f"models.{entry['model']}."
        shown = ",".join(f"{value:.3g}" for value in values)
        parts.append(f"{owner}{entry['setting']}{entry['tensors']}=[{shown}]")
    for part in changes.get("slices", ()):
        source = part["sources"][0]
        first, stop = source["layer_range"]
        parts.append(f"{source['model']}:{first}-{stop - 1}")
    return " ".join(parts)
