"""``stillroom rag graph-show``: what a graph holds, checked and exported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.options import (
    access_options,
    debug_option,
    existing_path,
    json_option,
    print_json,
)

if TYPE_CHECKING:
    from stillroom.rag.graphs.graph import Graph
    from stillroom.rag.index import Index

__all__ = ["command"]

_MOST_MENTIONS = 10


@click.command(
    "graph-show",
    epilog="""
\b
Examples:
  stillroom rag graph-show graph
  stillroom rag graph-show graph --entity "context manager" --index index
  stillroom rag graph-show graph --graphml graph.graphml
""",
)
@click.argument("graph", type=existing_path)
@click.option("--entity", default="", help="Show one entity, its relations and mentions.")
@click.option("--index", type=existing_path, help="Whose passages are quoted, and checked against.")
@click.option("--check", is_flag=True, help="Hold every span against the index's passages.")
@click.option("--graphml", type=existing_path, help="Write entities and relations for other tools.")
@access_options
@json_option
@debug_option
def command(
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
    from stillroom.rag.access import Access
    from stillroom.rag.graphs.graph import Graph
    from stillroom.rag.graphs.show import describe_entity, describe_graph
    from stillroom.rag.index import Index

    if check and index is None:
        raise click.UsageError("--check needs --index")
    opened = Graph.open(graph)
    access = Access(tenant, principals) if tenant or principals else None
    passages = Index.open(index, access=access) if index is not None else None
    try:
        if graphml is not None:
            _export(opened, graphml)
        if check and passages is not None:
            _check(opened, passages)
        told = describe_entity(opened, entity, passages) if entity else describe_graph(opened)
    finally:
        if passages is not None:
            passages.close()
    if as_json:
        print_json({"entity" if entity else "graph": told})
    elif entity:
        _print_entity(told)
    else:
        _print_graph(told)


def _export(graph: Graph, path: Path) -> None:
    from stillroom.jobs import atomic_write
    from stillroom.rag.graphs.files import write_graphml

    with atomic_write(path) as file:
        write_graphml(file, graph.entities, graph.edges)
    click.echo(f"{path}: {len(graph.entities)} nodes, {len(graph.edges)} edges", err=True)


def _check(graph: Graph, index: Index) -> None:
    from stillroom.errors import IntegrityError, Problem
    from stillroom.rag.graphs.show import check_graph

    flaws = check_graph(graph, index)
    if flaws:
        raise IntegrityError(
            [
                Problem(
                    f"{one.part}: {one.what}",
                    "rag.graph-flaw",
                    str(graph.folder),
                    "text of the passage that the graph names",
                    "make the graph again: stillroom rag graph INDEX --out GRAPH --overwrite",
                )
                for one in flaws
            ]
        )
    click.echo("every span is what its passage says", err=True)


def _print_graph(told: dict[str, Any]) -> None:
    counts = told["counts"]
    click.echo(f"graph {told['digest'][:16]} of index {told['index'][:16]}")
    for name, value in counts.items():
        click.echo(f"  {name:20} {value}")
    click.echo("best connected")
    for one in told["entities"]:
        click.echo(f"  {one['name']}: {one['edges']} relations, {one['passages']} passages")
    click.echo("largest communities")
    for one in told["communities"]:
        click.echo(f"  {one['title']}: {one['entities']} entities, {one['passages']} passages")


def _print_entity(told: dict[str, Any]) -> None:
    also = f" (also {', '.join(told['aliases'])})" if told["aliases"] else ""
    click.echo(f"{told['name']}{also}")
    if told["description"]:
        click.echo(f"  {told['description']}  [written by a model]")
    for one in told["edges"][:_MOST_MENTIONS]:
        click.echo(f"  - {one['to']}, weight {one['weight']:.2f}, {one['passages']} passages")
    for one in told["mentions"][:_MOST_MENTIONS]:
        click.echo(f"  {one.get('location', one['passage'])}")
        if "text" in one:
            click.echo(f"    …{one['text']}…")
    left = len(told["mentions"]) - _MOST_MENTIONS
    if left > 0:
        click.echo(f"  and {left} more mentions; --json shows all")
