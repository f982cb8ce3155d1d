"""``stillroom rag graph`` and ``graph-show``: knowledge graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.options import (
    FiniteFloatRange,
    access_options,
    build_access,
    build_job_recipe,
    build_reader,
    command,
    count_option,
    existing_path,
    flag_option,
    out_folder_option,
    output_options,
    path_option,
    run_job_recipe,
    run_options,
)
from stillroom.cli.output import print_json

if TYPE_CHECKING:
    from stillroom.rag.graph.knowledge_graph import KnowledgeGraph
    from stillroom.rag.index.searcher import Index

__all__ = [
    "graph_command",
    "graph_show_command",
]


@command(
    "graph",
    "stillroom rag graph index --out graph",
    "stillroom rag graph index --out graph --overwrite",
    "stillroom rag graph index --out graph --extractor model --model ./my-checkpoint --estimate",
)
@click.argument("index", type=existing_path)
@out_folder_option
@click.option(
    "--extractor",
    default="noun_phrases",
    show_default=True,
    help="Entity extractor, with settings: noun_phrases:window=3,min_count=1.",
)
@click.option("--model", default="", help="Model of the extractor and of reports.")
@flag_option("--quoted-reports", help="Select sentences for reports; generate none.")
@click.option(
    "--merge-similarity",
    default=0.0,
    type=FiniteFloatRange(0, 1),
    help="Cosine from which two names are one entity; 0 disables matching by vectors.",
)
@count_option(
    "--max-cluster-size",
    default=10,
    show_default=True,
    least=2,
    help="Maximum number of entities of a community.",
)
@flag_option("--estimate", help="Print calls, tokens and time; write nothing.")
@access_options
@run_options
def graph_command(
    index: Path,
    out: Path,
    extractor: str,
    model: str,
    quoted_reports: bool,
    estimate: bool,
    tenant: str,
    principals: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Build a knowledge graph of an index: entities, relations and communities.

    With --overwrite the graph at --out is updated: only new passages are read, and entities of
    removed passages are removed.
    """
    from stillroom.rag.graph.job import estimate_graph
    from stillroom.rag.interfaces import EXTRACTORS
    from stillroom.rag.jobs.graph import GraphRecipe
    from stillroom.rag.retrieval.pipeline import parse_method

    recipe = build_job_recipe(
        GraphRecipe,
        index=index,
        reader=build_reader(tenant, principals),
        extractor=parse_method(EXTRACTORS, extractor).model_dump(mode="json"),
        writer={"model": model, "reports": not quoted_reports} if model else None,
        merge_similarity=options["merge_similarity"],
        max_cluster_size=options["max_cluster_size"],
    )
    if estimate:
        cost = estimate_graph(recipe, out)
        if as_json:
            print_json({"estimate": cost.to_json()})
        else:
            click.echo(str(cost))
        return
    artifact = run_job_recipe(recipe, out, options)
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, **artifact.details})
        return
    counts = artifact.details
    click.echo(
        f"{out}: {counts['entities']} entities, {counts['edges']} relations, "
        f"{counts['communities']} communities on {counts['levels']} levels"
    )
    click.echo(
        f"  {counts['extracted']} of {counts['passages']} passages were read; digest "
        f"{artifact.digest[:16]}"
    )


_MAX_MENTIONS = 10


@command(
    "graph-show",
    "stillroom rag graph-show graph",
    'stillroom rag graph-show graph --entity "context manager" --index index',
    "stillroom rag graph-show graph --graphml graph.graphml",
)
@click.argument("graph", type=existing_path)
@click.option("--entity", default="", help="Show one entity, its relations and mentions.")
@path_option("--index", help="Index whose passages are quoted, and checked against.")
@flag_option("--check", help="Compare every span with the index's passages.")
@path_option("--graphml", help="Write entities and relations as GraphML.")
@access_options
@output_options
def graph_show_command(
    graph: Path,
    entity: str,
    index: Path | None,
    check: bool,
    graphml: Path | None,
    tenant: str,
    principals: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show a graph or one of its entities, check it, or export it."""
    from stillroom.rag.graph.knowledge_graph import KnowledgeGraph, describe_entity, describe_graph
    from stillroom.rag.index.searcher import Index

    if check and index is None:
        raise click.UsageError("--check needs --index")
    opened = KnowledgeGraph.open(graph)
    access = build_access(tenant, principals)
    passages = Index.open(index, access=access) if index is not None else None
    try:
        if graphml is not None:
            _export_graph(opened, graphml)
        if check and passages is not None:
            _check_graph(opened, passages)
        description = (
            describe_entity(opened, entity, passages) if entity else describe_graph(opened)
        )
    finally:
        if passages is not None:
            passages.close()
    if as_json:
        print_json({"entity" if entity else "graph": description})
    elif entity:
        _print_entity(description)
    else:
        _print_graph(description)


def _export_graph(graph: KnowledgeGraph, path: Path) -> None:
    from stillroom.jobs import atomic_write
    from stillroom.rag.graph.types import write_graphml

    with atomic_write(path) as file:
        write_graphml(file, graph.entities, graph.edges)
    click.echo(f"{path}: {len(graph.entities)} nodes, {len(graph.edges)} edges", err=True)


def _check_graph(graph: KnowledgeGraph, index: Index) -> None:
    from stillroom.errors import IntegrityError, Problem
    from stillroom.rag.graph.knowledge_graph import check_graph

    flaws = check_graph(graph, index)
    if flaws:
        raise IntegrityError(
            [
                Problem(
                    f"{flaw.part}: {flaw.what}",
                    "rag.graph-flaw",
                    str(graph.folder),
                    "text of the passage that the graph names",
                    "build the graph again: stillroom rag graph INDEX --out GRAPH --overwrite",
                )
                for flaw in flaws
            ]
        )
    click.echo("every span matches its passage", err=True)


def _print_graph(description: dict[str, Any]) -> None:
    counts = description["counts"]
    click.echo(f"graph {description['digest'][:16]} of index {description['index'][:16]}")
    for name, value in counts.items():
        click.echo(f"  {name:20} {value}")
    click.echo("best connected")
    for item in description["entities"]:
        click.echo(f"  {item['name']}: {item['edges']} relations, {item['passages']} passages")
    click.echo("largest communities")
    for item in description["communities"]:
        click.echo(f"  {item['title']}: {item['entities']} entities, {item['passages']} passages")


def _print_entity(description: dict[str, Any]) -> None:
    also = f" (also {', '.join(description['aliases'])})" if description["aliases"] else ""
    click.echo(f"{description['name']}{also}")
    if description["description"]:
        click.echo(f"  {description['description']}  [written by a model]")
    for item in description["edges"][:_MAX_MENTIONS]:
        click.echo(f"  - {item['to']}, weight {item['weight']:.2f}, {item['passages']} passages")
    for item in description["mentions"][:_MAX_MENTIONS]:
        click.echo(f"  {item.get('location', item['passage'])}")
        if "text" in item:
            click.echo(f"    …{item['text']}…")
    remaining = len(description["mentions"]) - _MAX_MENTIONS
    if remaining > 0:
        click.echo(f"  and {remaining} more mentions; --json shows all")
