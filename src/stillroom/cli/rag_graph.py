"""``stillroom rag graph``: entities, relations and communities of an index."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.numbers import FiniteRange
from stillroom.cli.options import (
    access_options,
    existing_path,
    job_options,
    json_option,
    print_json,
)

__all__ = ["command"]


@click.command(
    "graph",
    epilog="""
\b
Examples:
  stillroom rag graph index --out graph
  stillroom rag graph index --out graph --overwrite
  stillroom rag graph index --out graph --extractor model --model ./my-checkpoint --estimate
""",
)
@click.argument("index", type=existing_path)
@click.option("--out", type=existing_path, required=True, help="The folder of the graph.")
@click.option(
    "--extractor",
    default="noun_phrases",
    show_default=True,
    help="What finds entities, perhaps with settings: noun_phrases:window=3,min_count=1.",
)
@click.option("--model", default="", help="What is asked: by the extractor, and for reports.")
@click.option("--quoted-reports", is_flag=True, help="Choose sentences for reports; write none.")
@click.option(
    "--same-name",
    default=0.0,
    type=FiniteRange(0, 1),
    help="Cosine from which two names are one entity; 0 joins none by their vectors.",
)
@click.option(
    "--community-size",
    default=10,
    type=click.IntRange(min=2),
    show_default=True,
    help="Communities with more entities are divided.",
)
@click.option("--estimate", is_flag=True, help="Say calls, tokens and time; make nothing.")
@access_options
@json_option
@job_options
def command(
    index: Path,
    out: Path,
    extractor: str,
    model: str,
    quoted_reports: bool,
    same_name: float,
    community_size: int,
    estimate: bool,
    tenant: str,
    principals: tuple[str, ...],
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Find what an index speaks of, how it is related, and its communities.

    With --overwrite the graph at --out is brought up to date: only passages that it does not know
    are read again, and what is gone from the index is gone from the graph.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.rag.access import Access
    from stillroom.rag.extraction import EXTRACTORS
    from stillroom.rag.graphs.estimate import estimate_graph
    from stillroom.rag.graphs.job import GraphPlan, build_graph
    from stillroom.rag.ways import parse_method

    access = Access(tenant, principals) if tenant or principals else None
    plan = GraphPlan(
        index,
        parse_method(EXTRACTORS, extractor),
        model,
        reports=not quoted_reports,
        same_name=same_name,
        community_size=community_size,
        access=access,
    )
    if estimate:
        cost = estimate_graph(plan, out)
        if as_json:
            print_json({"estimate": cost.to_json()})
        else:
            click.echo(str(cost))
        return
    artifact, description = build_graph(
        plan,
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
        f"{out}: {counts['entities']} entities, {counts['edges']} relations, "
        f"{counts['communities']} communities on {counts['levels']} levels"
    )
    click.echo(
        f"  {artifact.details['extracted']} of {counts['passages']} passages were read anew; "
        f"digest {artifact.digest[:16]}"
    )
