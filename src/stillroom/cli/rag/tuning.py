"""``stillroom rag tune``: fusion of keyword and dense scores."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stillroom.cli.options import (
    access_options,
    build_job_recipe,
    build_reader,
    command,
    count_option,
    existing_path,
    flag_option,
    out_folder_option,
    qrels_options,
    resolve_qrels,
    run_job_recipe,
    run_options,
)
from stillroom.cli.output import print_report

__all__ = ["tune_command"]


@command(
    "tune",
    "stillroom rag tune index --collection scifact --out tuned",
    "stillroom rag tune index --collection scifact --out tuned --write",
    "stillroom rag tune index --collection scifact --out tuned --pipeline hybrid --pipeline convex",
)
@click.argument("index", type=existing_path)
@qrels_options
@click.option(
    "--pipeline",
    "pipelines",
    multiple=True,
    help=(
        "Pipeline to try, the default first; may be repeated. Default: 50 settings of hybrid "
        "and convex."
    ),
)
@click.option("--measure", default="ndcg@10", show_default=True, help="Measure to maximize.")
@count_option("--folds", default=5, least=2, most=100, help="Number of cross-validation folds.")
@count_option("--seed", default=0, least=0, help="Random seed of the folds and the intervals.")
@flag_option("--write", "is_written", help="Store the chosen pipeline in the index as its default.")
@access_options
@out_folder_option
@run_options
def tune_command(
    index: Path,
    collection: Path | None,
    split: str,
    queries: Path | None,
    qrels: Path | None,
    pipelines: tuple[str, ...],
    measure: str,
    folds: int,
    seed: int,
    is_written: bool,
    tenant: str,
    principals: tuple[str, ...],
    out: Path,
    as_json: bool,
    **options: bool,
) -> None:
    """Tune the fusion of keyword and dense scores on judged queries.

    Every setting is measured on queries that were not used to choose it. Without a gain the default
    stays. output/retriever.json names the chosen retriever; --write makes it the index's default.
    """
    from stillroom.evaluate import Report
    from stillroom.rag.jobs.fusion_tuning import FusionTuningRecipe
    from stillroom.rag.storage.snapshots import write_tuned_retriever

    queries_path, judged = resolve_qrels(collection, split, queries, qrels)
    recipe = build_job_recipe(
        FusionTuningRecipe,
        index=index,
        reader=build_reader(tenant, principals),
        queries=queries_path,
        qrels=judged,
        pipelines=list(pipelines),
        measure=measure,
        folds=folds,
        seed=seed,
    )
    artifact = run_job_recipe(recipe, out, options)
    if is_written:
        tuned = json.loads((out / "output" / "retriever.json").read_text(encoding="utf-8"))
        write_tuned_retriever(index, tuned["pipeline"], tuned["retriever"])
    details = artifact.details
    summary = {"pipeline": details["pipeline"], "is_gain": details["is_gain"]}
    summary["is_written"] = is_written
    print_report(out, artifact, Report.from_json(details), as_json=as_json, **summary)
