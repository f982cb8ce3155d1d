"""Knowledge graph: open for search, with passage ranking and consistency checks.

A graph is derived from one state of an index, and searched together with one: what the index does
not hold any more, or does not let its reader see, is not found by the graph either. A passage is
asked for by its id; an entity or an edge counts where one passage under it is there; a report is
given only where every passage under it is, since its words come from all of them.

Does not know: what was added to the index since. ``check_index_match`` says when that may be.

``check_graph`` holds every span against the passage that it names, so that a mention always is what
the document says.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stillroom.errors import DataError, IntegrityError
from stillroom.rag.graph.entities import normalize_name
from stillroom.rag.graph.types import (
    COMMUNITIES,
    EDGE_VECTORS,
    EDGES,
    ENTITIES,
    ENTITY_VECTORS,
    REPORT_VECTORS,
    SOURCES,
    Community,
    Entity,
    GraphEdge,
    SourcePassage,
    find_graph,
    read_graph_description,
    read_rows,
)
from stillroom.rag.observability import add_warning

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.graph.summary_tree import SummaryTree
    from stillroom.rag.graph.types import Span
    from stillroom.rag.index.searcher import Index

__all__ = [
    "GraphIssue",
    "GraphVisibility",
    "KnowledgeGraph",
    "borrow_entities",
    "check_graph",
    "check_index_match",
    "compute_specificity",
    "describe_entity",
    "describe_graph",
    "interleave_rows",
    "list_passages",
    "open_graph",
    "rank_passages",
    "rank_reports",
    "spread_activation",
]


_MAX_NAME_WORDS = 6


class KnowledgeGraph:
    """A finished graph; use ``open``, or ``open_graph``, which keeps the last ones."""

    def __init__(self, folder: Path, *, verify: bool) -> None:
        """Read the files of ``folder``; callers use ``open``."""
        self.folder = folder
        self.description = read_graph_description(folder, "graph", verify=verify)
        self.sources = [SourcePassage(*row) for row in read_rows(folder / SOURCES)]
        self.entities = [Entity.from_json(row) for row in read_rows(folder / ENTITIES)]
        self.edges = [GraphEdge.from_json(row) for row in read_rows(folder / EDGES)]
        self.communities = [Community.from_json(row) for row in read_rows(folder / COMMUNITIES)]
        self.entity_vectors = _read_vectors(folder / ENTITY_VECTORS)
        self.edge_vectors = _read_vectors(folder / EDGE_VECTORS)
        self.report_vectors = _read_vectors(folder / REPORT_VECTORS)
        self.edges_of: dict[int, list[int]] = defaultdict(list)
        """The numbers of an entity's edges."""
        for number, edge in enumerate(self.edges):
            self.edges_of[edge.source].append(number)
            self.edges_of[edge.target].append(number)
        self.entities_of: dict[int, list[int]] = defaultdict(list)
        """The numbers of the entities that a source mentions."""
        for number, entity in enumerate(self.entities):
            for row in entity.rows:
                self.entities_of[row].append(number)
        self._rows = {source.passage_id: row for row, source in enumerate(self.sources)}
        self._names: dict[str, int] = {}
        for number, entity in enumerate(self.entities):
            for name in (*entity.aliases, entity.name):
                self._names.setdefault(normalize_name(name), number)
        self._names.update((entity.key, at) for at, entity in enumerate(self.entities))

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Self:
        """Open the graph of a finished job, or a folder that holds graph.json.

        Args:
            path: The artifact's folder or its output.
            verify: Recompute every file's digest.

        Raises:
            DataError: If the path is missing or another kind of artifact.
            IntegrityError: If a file is missing, half-written or changed.
        """
        return cls(find_graph(Path(path), "graph"), verify=verify)

    @property
    def digest(self) -> str:
        """The digest of the graph."""
        return self.description.digest

    def find(self, name: str) -> int | None:
        """Return the number of the entity that has a name or alias, in any case and number."""
        return self._names.get(normalize_name(name))

    def source_of(self, passage_id: str) -> int | None:
        """Return the row of the source that is a passage, None for one that is newer."""
        return self._rows.get(passage_id)

    def named_in(self, text: str) -> list[int]:
        """Return the entities that a text names, in order; of overlapping names the longest."""
        words = text.split()
        found: dict[int, None] = {}
        at = 0
        while at < len(words):
            for size in range(min(_MAX_NAME_WORDS, len(words) - at), 0, -1):
                number = self.find(" ".join(words[at : at + size]))
                if number is not None:
                    found.setdefault(number)
                    at += size - 1
                    break
            at += 1
        return list(found)

    def meet(self, index: Index) -> GraphVisibility:
        """Return what of the graph an index lets its reader see; see ``check_index_match``."""
        return check_index_match(self, index)

    def likeness(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of a query's vector with every entity's, (E,)."""
        return np.asarray(self.entity_vectors @ query, dtype=np.float32)

    def edge_likeness(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of a query's vector with every edge's; without one, its ends' mean."""
        if len(self.edge_vectors):
            return np.asarray(self.edge_vectors @ query, dtype=np.float32)
        ends = self.likeness(query)
        pairs = np.array([(one.source, one.target) for one in self.edges], dtype=np.int64)
        both: NDArray[np.float32] = ends[pairs.reshape(-1, 2)].mean(axis=1)
        return both

    def report_likeness(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of a query's vector with every community's report, (C,)."""
        return np.asarray(self.report_vectors @ query, dtype=np.float32)


class GraphVisibility:
    """What of a graph or tree an index lets its reader see; looks every passage up once."""

    def __init__(self, made: KnowledgeGraph | SummaryTree, index: Index) -> None:
        """Look at what was ``made`` from an index through ``index``."""
        self._sources, self._index = made.sources, index
        self._rows: dict[int, int | None] = {}

    def row(self, source: int) -> int | None:
        """Return the index row of a source, or None where the index has no such passage."""
        if source not in self._rows:
            try:
                self._rows[source] = self._index.row_of(self._sources[source].passage_id)
            except DataError:
                self._rows[source] = None
        return self._rows[source]

    def rows(self, sources: Iterable[int]) -> list[int]:
        """Return the index rows of those sources that can be seen, in order."""
        found = (self.row(source) for source in sources)
        return [row for row in found if row is not None]

    def sees(self, part: Entity | GraphEdge) -> bool:
        """Return whether one passage under an entity or an edge can be seen."""
        return any(self.row(row) is not None for row, _, _ in part.mentions)

    def sees_all(self, sources: Iterable[int]) -> bool:
        """Return whether every one of the passages under a report or summary can be seen."""
        return all(self.row(source) is not None for source in sources)

    def best(
        self, scores: NDArray[np.float32], parts: Sequence[Entity] | Sequence[GraphEdge], count: int
    ) -> Iterator[tuple[int, float]]:
        """Yield the best parts that can be seen, at most ``count``, with their scores above 0."""
        given = 0
        for at in np.lexsort((np.arange(len(scores)), -scores)):
            if given >= count or scores[at] <= 0:
                return
            if self.sees(parts[int(at)]):
                given += 1
                yield int(at), float(scores[at])


def check_index_match(made: KnowledgeGraph | SummaryTree, index: Index) -> GraphVisibility:
    """Return what an index lets its reader see of a graph or tree.

    That the index is in another state than the one that it was made from is noticed.

    Raises:
        IntegrityError: If another embedder made its vectors: they would not compare.
    """
    what = made.description.what
    again = f"stillroom rag {what} INDEX --out {what.upper()} --overwrite"
    if made.description.embedder != index.embedder.fingerprint:
        raise IntegrityError(
            f"the {what} was made with embedder {made.description.embedder}, but the index has "
            f"{index.embedder.fingerprint}",
            code="rag.graph-embedder",
            where=str(made.folder),
            expected=f"the index that the {what} was made from, or a later state of it",
            next=f"make it again: {again}",
        )
    if made.description.index != index.digest:
        add_warning(
            f"the index has changed since the {what} was made: what was added is not in it "
            f"({again} brings it up to date)"
        )
    return GraphVisibility(made, index)


_OPEN_LOCK = threading.Lock()


def open_graph(path: Path | str) -> KnowledgeGraph:
    """Return the graph at ``path``; the last ones stay open until their files change.

    Raises:
        DataError: If the path is missing or another kind of artifact.
        IntegrityError: If a file is missing, half-written or changed.
    """
    folder = find_graph(Path(path), "graph")
    mark = folder / "graph.json"
    changed = mark.stat().st_mtime_ns if mark.is_file() else 0
    with _OPEN_LOCK:
        return _open_cached(folder.absolute(), changed)


@lru_cache(maxsize=4)
def _open_cached(folder: Path, changed: int) -> KnowledgeGraph:
    return KnowledgeGraph.open(folder)


def _read_vectors(path: Path) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return vectors


def spread_activation(
    graph: KnowledgeGraph,
    sight: GraphVisibility,
    seeds: Mapping[int, float],
    *,
    hops: int,
    damping: float,
) -> dict[int, float]:
    """Return the activation of entities: the seeds', and what their edges carry on.

    An entity gives each neighbour ``damping`` times its own activation of that hop, shared by the
    weights of its edges. Edges that no visible passage bears carry nothing.

    Args:
        graph: Whose edges.
        sight: What can be seen.
        seeds: Activation of the first entities, above 0.
        hops: How many edges far.
        damping: What share goes on from hop to hop.
    """
    total: dict[int, float] = dict(seeds)
    wave: Mapping[int, float] = seeds
    for _ in range(hops):
        reached: dict[int, float] = defaultdict(float)
        for number in sorted(wave):
            edges = [graph.edges[at] for at in graph.edges_of.get(number, ())]
            seen = [edge for edge in edges if sight.sees(edge)]
            weights = sum(edge.weight for edge in seen)
            for edge in seen:
                other = edge.target if edge.source == number else edge.source
                reached[other] += damping * wave[number] * edge.weight / weights
        for number, value in reached.items():
            total[number] = total.get(number, 0.0) + value
        wave = reached
    return total


def rank_passages(
    graph: KnowledgeGraph,
    sight: GraphVisibility,
    activation: Mapping[int, float],
    own: Mapping[int, float] = MappingProxyType({}),
) -> list[tuple[int, float]]:
    """Return the index rows that mention activated entities, best first.

    A passage's score is the sum of its entities' activation, each divided by how many passages
    mention it: what everything speaks of points nowhere. ``own`` is added, by index
    row.
    """
    scores: dict[int, float] = defaultdict(float)
    for number in sorted(activation):
        rows = graph.entities[number].rows
        share = activation[number] * compute_specificity(graph, number)
        for row in rows:
            scores[row] += share
    total: dict[int, float] = defaultdict(float, own)
    for source, score in scores.items():
        place = sight.row(source)
        if place is not None:
            total[place] += score
    return sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))


def compute_specificity(graph: KnowledgeGraph, entity: int) -> float:
    """Return how much an entity says of a passage: 1 over how many mention it.

    Source: Gutierrez et al. 2024, arXiv:2405.14831, section 2.3 (node specificity).
    """
    return 1.0 / len(graph.entities[entity].rows)


def borrow_entities(graph: KnowledgeGraph, sources: Mapping[int, float]) -> dict[int, float]:
    """Return what passages lend their entities: each its weight, shared by their specificity.

    An entity that no other passage mentions leads nowhere else, neither itself nor by its edges:
    what it were lent would only come back.

    Args:
        graph: Whose sources and entities.
        sources: Weight of each source.
    """
    lent: dict[int, float] = defaultdict(float)
    for source, weight in sources.items():
        numbers = [at for at in graph.entities_of.get(source, ()) if _has_edges(graph, at)]
        shares = [compute_specificity(graph, number) for number in numbers]
        for number, share in zip(numbers, shares, strict=True):
            lent[number] += weight * share / sum(shares)
    return lent


def _has_edges(graph: KnowledgeGraph, entity: int) -> bool:
    return len(graph.entities[entity].rows) > 1


def rank_reports(
    graph: KnowledgeGraph,
    sight: GraphVisibility,
    likeness: NDArray[np.float32],
    *,
    level: int,
    count: int,
) -> list[int]:
    """Return the communities whose reports are likest a query and may be seen, best first.

    Args:
        graph: Whose communities.
        sight: What can be seen.
        likeness: Of the query with each report, (C,).
        level: Those of this level, and those above it that are not divided so far.
        count: How many at most.
    """
    parents = {one.parent for one in graph.communities if one.level <= level}
    usable = [
        at
        for at, one in enumerate(graph.communities)
        if one.level == level or (one.level < level and one.id not in parents)
    ]
    usable.sort(key=lambda at: (-float(likeness[at]), at))
    return list(islice((at for at in usable if sight.sees_all(graph.communities[at].rows)), count))


def list_passages(sight: GraphVisibility, groups: Iterable[Sequence[Span]]) -> list[int]:
    """Return index rows in the order in which ranked parts name them.

    Within a part, passages that more of the parts name come first.
    """
    parts = [sorted({row for row, _, _ in spans}) for spans in groups]
    counts: dict[int, int] = defaultdict(int)
    for rows in parts:
        for row in rows:
            counts[row] += 1
    ordered = [sight.row(row) for rows in parts for row in sorted(rows, key=lambda r: -counts[r])]
    return list(dict.fromkeys(row for row in ordered if row is not None))


def interleave_rows(lists: Sequence[Sequence[int]]) -> list[int]:
    """Return rows by turns: the first of each list, then the second of each; each row once."""
    longest = max(map(len, lists), default=0)
    turns = (rows[at] for at in range(longest) for rows in lists if at < len(rows))
    return list(dict.fromkeys(turns))


@dataclass(frozen=True, slots=True)
class GraphIssue:
    """Something in a graph that the index does not bear out."""

    part: str
    what: str


def describe_graph(graph: KnowledgeGraph, *, most: int = 10) -> dict[str, Any]:
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


def describe_entity(graph: KnowledgeGraph, name: str, index: Index | None = None) -> dict[str, Any]:
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
        "mentions": [_describe_mention(graph, index, *span) for span in entity.mentions],
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


def check_graph(graph: KnowledgeGraph, index: Index) -> list[GraphIssue]:
    """Return what in a graph its index does not bear out; none means sound.

    Passages that the index has no more are no flaw: what stands on them is not found.
    """
    sight = GraphVisibility(graph, index)
    texts: dict[int, str] = {}

    def said(row: int, start: int, end: int) -> str | None:
        """Return the text of a span, None where its passage is gone; empty where it has no such."""
        if sight.row(row) is None:
            return None
        if row not in texts:
            texts[row] = index.passage(graph.sources[row].passage_id).text
        return texts[row][start:end] if 0 <= start < end <= len(texts[row]) else ""

    flaws = [
        GraphIssue(f"entity {entity.name}", f"{text!r:.60} at {span} is none of its names")
        for entity in graph.entities
        for span in entity.mentions
        if (text := said(*span)) is not None and not _is_named(entity, text)
    ]
    flaws += [
        GraphIssue(
            f"edge {graph.entities[edge.source].name} - {graph.entities[edge.target].name}",
            f"nothing stands at {span}",
        )
        for edge in graph.edges
        for span in edge.mentions
        if said(*span) == ""
    ]
    flaws += [
        GraphIssue(
            f"report {one.report.title}", f"{finding.text!r:.60} stands on nothing at {span}"
        )
        for one in graph.communities
        for finding in one.report.findings
        for span in finding.spans
        if said(*span) == ""
    ]
    return flaws


def _is_named(entity: Entity, text: str) -> bool:
    known = {normalize_name(name) for name in (entity.name, *entity.aliases)} | {entity.key}
    return normalize_name(" ".join(text.split())) in known


def _describe_mention(
    graph: KnowledgeGraph, index: Index | None, row: int, start: int, end: int
) -> dict[str, Any]:
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
