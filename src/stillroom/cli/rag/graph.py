"""``stillroom rag graph-show``: knowledge graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.options import (
    access_options,
    build_access,
    command,
    existing_path,
    flag_option,
    output_options,
    path_option,
    refuse_existing_output,
    refuse_idle_options,
    replace_option,
)
from stillroom.cli.output import print_json, print_text
from stillroom.errors import count_noun

if TYPE_CHECKING:
    from stillroom.rag.graph.knowledge_graph import KnowledgeGraph
    from stillroom.rag.index.searcher import Index

__all__ = [
    "graph_show_command",
]


_MAX_MENTIONS = 10


@command(
    "graph-show",
    "stillroom rag graph-show graph",
    'stillroom rag graph-show graph --entity "context manager" --index index',
    "stillroom rag graph-show graph --graphml graph.graphml",
)
@click.argument("graph", type=existing_path)
@click.option("--entity", default="", help="Show one entity, its relations and mentions.")
@path_option("--index", help="Index to quote passages from, and to check against.")
@flag_option("--check", help="Compare every span with the index's passages.")
@path_option("--graphml", help="Write entities and relations as GraphML.")
@replace_option
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

    if index is None:
        refuse_idle_options({"check", "tenant", "principals"}, "needs --index")
    refuse_existing_output(graphml, "--graphml")
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
    print_text(f"{path}: {len(graph.entities)} nodes, {len(graph.edges)} edges", err=True)


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
                    "stillroom run rag.graph index=INDEX --out GRAPH --overwrite",
                )
                for flaw in flaws
            ]
        )
    print_text("every span matches its passage", err=True)


def _print_graph(description: dict[str, Any]) -> None:
    counts = description["counts"]
    print_text(f"graph {description['digest'][:16]} of index {description['index'][:16]}")
    for name, value in counts.items():
        print_text(f"  {name:20} {value}")
    print_text("best connected")
    for item in description["entities"]:
        print_text(
            f"  {item['name']}: {item['edges']} relations, "
            f"{count_noun(item['passages'], 'passage')}"
        )
    print_text("largest communities")
    for item in description["communities"]:
        print_text(
            f"  {item['title']}: {item['entities']} entities, "
            f"{count_noun(item['passages'], 'passage')}"
        )


def _print_entity(description: dict[str, Any]) -> None:
    also = f" (also {', '.join(description['aliases'])})" if description["aliases"] else ""
    print_text(f"{description['name']}{also}")
    if description["description"]:
        print_text(f"  {description['description']}  [written by a model]")
    for item in description["edges"][:_MAX_MENTIONS]:
        print_text(
            f"  - {item['to']}, weight {item['weight']:.2f}, "
            f"{count_noun(item['passages'], 'passage')}"
        )
    for item in description["mentions"][:_MAX_MENTIONS]:
        print_text(f"  {item.get('location', item['passage'])}")
        if "text" in item:
            print_text(f"    …{item['text']}…")
    remaining = len(description["mentions"]) - _MAX_MENTIONS
    if remaining > 0:
        print_text(f"  and {remaining} more mentions; --json shows all")
