"""``stillroom rag tree``: summaries of passages, and of summaries."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import (
    access_options,
    existing_path,
    job_options,
    json_option,
    print_json,
)

__all__ = ["command"]


@click.command(
    "tree",
    epilog="""
\b
Examples:
  stillroom rag tree index --out tree
  stillroom rag tree index --out tree --overwrite --model ./my-checkpoint
""",
)
@click.argument("index", type=existing_path)
@click.option("--out", type=existing_path, required=True, help="The folder of the tree.")
@click.option(
    "--model", default="", help="What writes summaries; default the documents' own words."
)
@click.option(
    "--cluster-size",
    default=8,
    type=click.IntRange(2, 100),
    show_default=True,
    help="Most texts in one summary.",
)
@click.option(
    "--layers",
    default=5,
    type=click.IntRange(1, 20),
    show_default=True,
    help="How often summaries are summarized at most.",
)
@access_options
@json_option
@job_options
def command(
    index: Path,
    out: Path,
    model: str,
    cluster_size: int,
    layers: int,
    tenant: str,
    principals: tuple[str, ...],
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Make a tree of summaries over an index.

    With --overwrite the tree at --out is brought up to date: only clusters whose members changed
    are summarized again.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.rag.access import Access
    from stillroom.rag.graphs.tree_job import TreePlan, build_tree

    access = Access(tenant, principals) if tenant or principals else None
    artifact, description = build_tree(
        TreePlan(index, model, cluster_size=cluster_size, layers=layers, access=access),
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, **artifact.details})
        return
    counts = description.counts
    click.echo(
        f"{out}: {counts['summaries']} summaries on {counts['layers']} layers over "
        f"{counts['passages']} passages; digest {artifact.digest[:16]}"
    )
