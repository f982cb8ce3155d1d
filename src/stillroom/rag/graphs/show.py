"""What a graph holds, for people: its size, its best-connected entities, one entity, its soundness.

``check_graph`` holds every span against the passage that it names, so that a mention always is what
the document says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.rag.graphs.graph import Graph, Sight
from stillroom.rag.graphs.resolve import merge_key

if TYPE_CHECKING:
    from stillroom.rag.graphs.parts import Entity
    from stillroom.rag.index import Index

__all__ = ["Flaw", "check_graph", "describe_entity", "describe_graph"]


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something in a graph that the index does not bear out."""

    part: str
    what: str


def describe_graph(graph: Graph, *, most: int = 10) -> dict[str, Any]:
    """Return a graph's counts, settings and its ``most`` connected entities and largest groups."""
    degrees = [len(graph.edges_of.get(at, ())) for at in range(len(graph.entities))]
    order = sorted(range(len(degrees)), key=lambda at: (-degrees[at], at))
    tops = sorted(graph.communities, key=lambda one: (one.level, -len(one.entities), one.id))
    return {
        "digest": graph.digest,
        "index": graph.description.index,
        "settings": dict(graph.description.settings),
        "counts": dict(graph.description.counts),
        "entities": [
            {
                "name": graph.entities[at].name,
                "edges": len(graph.edges_of.get(at, ())),
                "passages": len(graph.entities[at].rows),
            }
            for at in order[:most]
        ],
        "communities": [
            {
                "id": one.id,
                "level": one.level,
                "entities": len(one.entities),
                "passages": len(one.rows),
                "title": one.report.title,
                "origin": one.report.origin,
            }
            for one in tops[:most]
        ],
    }


def describe_entity(graph: Graph, name: str, index: Index | None = None) -> dict[str, Any]:
    """Return an entity, its nearest neighbours, and its mentions, with their text from the index.

    Raises:
        DataError: If the graph has no entity of that name.
    """
    number = graph.find(name)
    if number is None:
        raise DataError(
            f"the graph has no entity {name!r:.80}",
            code="rag.no-such-entity",
            where=str(graph.folder),
            expected="a name or alias, in any case",
            next="stillroom rag graph-show GRAPH lists the best connected",
        )
    entity = graph.entities[number]
    edges = [graph.edges[at] for at in graph.edges_of.get(number, ())]
    edges.sort(key=lambda edge: -edge.weight)
    return {
        **entity.to_json(),
        "mentions": [_mention(graph, index, *span) for span in entity.mentions],
        "edges": [
            {
                "to": graph.entities[e.target if e.source == number else e.source].name,
                "weight": e.weight,
                "description": e.description,
                "passages": len(e.mentions),
            }
            for e in edges
        ],
    }


def check_graph(graph: Graph, index: Index) -> list[Flaw]:
    """Return what in a graph its index does not bear out; none means sound.

    Passages that the index has no more are no flaw: what stands on them is not found.
    """
    sight = Sight(graph, index)
    texts: dict[int, str] = {}

    def said(row: int, start: int, end: int) -> str | None:
        """Return the text of a span, None where its passage is gone; empty where it has no such."""
        if sight.row(row) is None:
            return None
        if row not in texts:
            texts[row] = index.passage(graph.sources[row].passage_id).text
        return texts[row][start:end] if 0 <= start < end <= len(texts[row]) else ""

    flaws = [
        Flaw(f"entity {entity.name}", f"{text!r:.60} at {span} is none of its names")
        for entity in graph.entities
        for span in entity.mentions
        if (text := said(*span)) is not None and not _names(entity, text)
    ]
    flaws += [
        Flaw(
            f"edge {graph.entities[edge.source].name} - {graph.entities[edge.target].name}",
            f"nothing stands at {span}",
        )
        for edge in graph.edges
        for span in edge.mentions
        if said(*span) == ""
    ]
    flaws += [
        Flaw(f"report {one.report.title}", f"{finding.text!r:.60} stands on nothing at {span}")
        for one in graph.communities
        for finding in one.report.findings
        for span in finding.spans
        if said(*span) == ""
    ]
    return flaws


def _names(entity: Entity, text: str) -> bool:
    known = {merge_key(name) for name in (entity.name, *entity.aliases)} | {entity.key}
    return merge_key(" ".join(text.split())) in known


def _mention(graph: Graph, index: Index | None, row: int, start: int, end: int) -> dict[str, Any]:
    source = graph.sources[row]
    told: dict[str, Any] = {"passage": source.passage_id, "start": start, "end": end}
    if index is not None:
        try:
            passage = index.passage(source.passage_id)
        except DataError:
            return {**told, "gone": True}
        told["location"] = str(passage.location)
        told["text"] = " ".join(passage.text[max(start - 60, 0) : end + 60].split())
    return told
