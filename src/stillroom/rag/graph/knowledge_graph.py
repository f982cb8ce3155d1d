"""Knowledge graph search (GraphRAG): ranking of passages and reports, access, consistency checks.

A graph is derived from one state of an index and searched together with the index. Passages that
the index has deleted, or hides from the reader, are not returned by the graph either. Passages are
looked up by id; an entity or an edge is visible if at least one of its passages is; a report is
visible only if all of its passages are, since its text is derived from all of them.

The graph does not contain passages added to the index later; ``KnowledgeGraph.meet`` warns if the
index has changed. ``check_graph`` verifies every span against its passage, so that a mention always
quotes the document.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
    EDGES,
    ENTITIES,
    ENTITY_VECTORS,
    GRAPH_FILE,
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

    from stillroom.rag.index.searcher import Index

__all__ = [
    "GraphIssue",
    "GraphVisibility",
    "KnowledgeGraph",
    "borrow_entities",
    "check_graph",
    "describe_entity",
    "describe_graph",
    "interleave_rows",
    "open_graph",
    "rank_passages",
    "rank_reports",
    "spread_activation",
]


_MAX_NAME_WORDS = 6
_UPDATE = "stillroom run rag.graph index=INDEX --out GRAPH --overwrite"


class KnowledgeGraph:
    """A finished graph; use ``open``, or ``open_graph``, which caches recently opened ones."""

    def __init__(self, folder: Path, *, verify: bool) -> None:
        """Read the files of ``folder``; use ``open`` instead."""
        self.folder = folder
        self.description = read_graph_description(folder, verify=verify)
        self.sources = read_rows(folder / SOURCES, SourcePassage)
        self.entities = read_rows(folder / ENTITIES, Entity)
        self.edges = read_rows(folder / EDGES, GraphEdge)
        self.communities = read_rows(folder / COMMUNITIES, Community)
        self.entity_vectors = _read_vectors(folder / ENTITY_VECTORS)
        self.report_vectors = _read_vectors(folder / REPORT_VECTORS)
        self.edges_of: dict[int, list[int]] = defaultdict(list)
        """Edge numbers by entity number."""
        for number, edge in enumerate(self.edges):
            self.edges_of[edge.source].append(number)
            self.edges_of[edge.target].append(number)
        self.entities_of: dict[int, list[int]] = defaultdict(list)
        """Numbers of the entities that a source mentions, by source row."""
        for number, entity in enumerate(self.entities):
            for row in entity.rows:
                self.entities_of[row].append(number)
        self._rows = {source.passage_id: row for row, source in enumerate(self.sources)}
        self._names: dict[str, int] = {}
        for number, entity in enumerate(self.entities):
            for name in (*entity.aliases, entity.name):
                self._names.setdefault(normalize_name(name), number)
        self._names.update((entity.key, number) for number, entity in enumerate(self.entities))

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Self:
        """Open the graph of a finished job, or a folder with a graph.json.

        Raises:
            DataError: If the path is missing or another kind of artifact.
            IntegrityError: If a file is missing, half-written or changed.
        """
        return cls(find_graph(Path(path)), verify=verify)

    @property
    def digest(self) -> str:
        """Digest of the graph."""
        return self.description.digest

    def find(self, name: str) -> int | None:
        """Return the number of the entity with a name or alias, ignoring case and plural."""
        return self._names.get(normalize_name(name))

    def source_of(self, passage_id: str) -> int | None:
        """Return the source row of a passage; None if the graph does not have it."""
        return self._rows.get(passage_id)

    def named_in(self, text: str) -> list[int]:
        """Return the entities named in a text, in order; of overlapping names, the longest."""
        words = text.split()
        numbers: dict[int, None] = {}
        start = 0
        while start < len(words):
            for size in range(min(_MAX_NAME_WORDS, len(words) - start), 0, -1):
                number = self.find(" ".join(words[start : start + size]))
                if number is not None:
                    numbers.setdefault(number)
                    start += size - 1
                    break
            start += 1
        return list(numbers)

    def meet(self, index: Index) -> GraphVisibility:
        """Return the parts of the graph visible through an index.

        Warns if the index has changed since the graph was built.

        Raises:
            IntegrityError: If the vectors are from another embedder, so that cosines are
                meaningless.
        """
        if self.description.embedder != index.embedder.fingerprint:
            raise IntegrityError(
                f"the graph was built with embedder {self.description.embedder}, but the index has "
                f"{index.embedder.fingerprint}",
                code="rag.graph-embedder",
                where=str(self.folder),
                expected="the index that the graph was built from, or a later state of it",
                next=f"build it again: {_UPDATE}",
            )
        if self.description.index != index.digest:
            add_warning(
                "the index has changed since the graph was made: what was added is not in it "
                f"({_UPDATE} brings it up to date)"
            )
        return GraphVisibility(self, index)

    def likeness(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of a query vector with every entity, (E,)."""
        return np.asarray(self.entity_vectors @ query, dtype=np.float32)

    def report_likeness(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of a query vector with every community report, (C,)."""
        return np.asarray(self.report_vectors @ query, dtype=np.float32)


class GraphVisibility:
    """The parts of a graph visible through an index; each passage is looked up once."""

    def __init__(self, graph: KnowledgeGraph, index: Index) -> None:
        self._sources, self._index = graph.sources, index
        self._rows: dict[int, int | None] = {}

    def row(self, source: int) -> int | None:
        """Return the index row of a source; None if the index does not have the passage."""
        if source not in self._rows:
            self._rows[source] = self._index.find_row(self._sources[source].passage_id)
        return self._rows[source]

    def rows(self, sources: Iterable[int]) -> list[int]:
        """Return the index rows of the visible sources, in order."""
        candidates = (self.row(source) for source in sources)
        return [row for row in candidates if row is not None]

    def sees(self, part: Entity | GraphEdge) -> bool:
        """Return whether at least one passage of an entity or edge is visible."""
        return any(self.row(row) is not None for row, _, _ in part.mentions)

    def sees_all(self, sources: Iterable[int]) -> bool:
        """Return whether all of the given sources are visible."""
        return all(self.row(source) is not None for source in sources)

    def best(
        self, scores: NDArray[np.float32], parts: Sequence[Entity], count: int
    ) -> Iterator[tuple[int, float]]:
        """Yield at most ``count`` visible parts with positive scores, best first, with scores."""
        yielded = 0
        for number in np.lexsort((np.arange(len(scores)), -scores)):
            if yielded >= count or scores[number] <= 0:
                return
            if self.sees(parts[int(number)]):
                yielded += 1
                yield int(number), float(scores[number])


_OPEN_LOCK = threading.Lock()


def open_graph(path: Path | str) -> KnowledgeGraph:
    """Return the graph at ``path``; recently opened ones are cached until their files change.

    Raises:
        DataError: If the path is missing or another kind of artifact.
        IntegrityError: If a file is missing, half-written or changed.
    """
    folder = find_graph(Path(path))
    mark = folder / GRAPH_FILE
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
    """Return the activation of entities after spreading from seeds along edges.

    In each hop an entity passes ``damping`` times its activation of the previous hop to its
    neighbors, in proportion to the edge weights. Edges without a visible passage are skipped.

    ``seeds`` have an activation above 0; ``damping`` is the share passed on at each hop.
    """
    total: dict[int, float] = dict(seeds)
    wave: Mapping[int, float] = seeds
    for _ in range(hops):
        reached: dict[int, float] = defaultdict(float)
        for number in sorted(wave):
            edges = [graph.edges[i] for i in graph.edges_of.get(number, ())]
            visible = [edge for edge in edges if sight.sees(edge)]
            weights = sum(edge.weight for edge in visible)
            for edge in visible:
                neighbor = edge.target if edge.source == number else edge.source
                reached[neighbor] += damping * wave[number] * edge.weight / weights
        for number, value in reached.items():
            total[number] = total.get(number, 0.0) + value
        wave = reached
    return total


def rank_passages(
    graph: KnowledgeGraph,
    sight: GraphVisibility,
    activation: Mapping[int, float],
    initial: Mapping[int, float] = MappingProxyType({}),
) -> list[tuple[int, float]]:
    """Return the index rows that mention activated entities, with their scores, best first.

    A passage's score is the sum of its entities' activations, each divided by the number of
    passages that mention the entity, so that ubiquitous entities count little. ``initial`` holds
    scores by index row that are added.
    """
    scores: dict[int, float] = defaultdict(float)
    for number in sorted(activation):
        rows = graph.entities[number].rows
        share = activation[number] * _compute_specificity(graph, number)
        for row in rows:
            scores[row] += share
    total: dict[int, float] = defaultdict(float, initial)
    for source, score in scores.items():
        index_row = sight.row(source)
        if index_row is not None:
            total[index_row] += score
    return sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))


def _compute_specificity(graph: KnowledgeGraph, entity: int) -> float:
    """Return the specificity of an entity: 1 over the number of passages that mention it.

    Source: Gutierrez et al. 2024, arXiv:2405.14831, section 2.3 (node specificity).
    """
    return 1.0 / len(graph.entities[entity].rows)


def borrow_entities(graph: KnowledgeGraph, sources: Mapping[int, float]) -> dict[int, float]:
    """Distribute the weights of passages over their entities, in proportion to specificity.

    Entities mentioned by no other passage are skipped: their activation could reach no other
    passage.
    """
    activation: dict[int, float] = defaultdict(float)
    for source, weight in sources.items():
        numbers = [
            number
            for number in graph.entities_of.get(source, ())
            if len(graph.entities[number].rows) > 1
        ]
        shares = [_compute_specificity(graph, number) for number in numbers]
        for number, share in zip(numbers, shares, strict=True):
            activation[number] += weight * share / sum(shares)
    return activation


def rank_reports(
    graph: KnowledgeGraph,
    sight: GraphVisibility,
    likeness: NDArray[np.float32],
    *,
    level: int,
    count: int,
) -> list[int]:
    """Return the communities with visible reports that are most similar to a query, best first.

    ``likeness`` is the cosine of the query with each report, (C,). Undivided communities of levels
    above ``level`` are included.
    """
    parents = {community.parent for community in graph.communities if community.level <= level}
    usable = [
        number
        for number, community in enumerate(graph.communities)
        if community.level == level or (community.level < level and community.id not in parents)
    ]
    usable.sort(key=lambda number: (-float(likeness[number]), number))
    return list(
        islice(
            (number for number in usable if sight.sees_all(graph.communities[number].rows)), count
        )
    )


def interleave_rows(lists: Sequence[Sequence[int]]) -> list[int]:
    """Interleave lists of rows: the first of each, then the second of each; each row once."""
    longest = max(map(len, lists), default=0)
    turns = (rows[i] for i in range(longest) for rows in lists if i < len(rows))
    return list(dict.fromkeys(turns))


@dataclass(frozen=True, slots=True)
class GraphIssue:
    """A part of a graph that is inconsistent with the index."""

    part: str
    what: str


def describe_graph(graph: KnowledgeGraph, *, most: int = 10) -> dict[str, Any]:
    """Return a graph's counts, settings, and ``most`` best connected entities and communities."""
    degrees = [len(graph.edges_of.get(number, ())) for number in range(len(graph.entities))]
    order = sorted(range(len(degrees)), key=lambda number: (-degrees[number], number))
    tops = sorted(
        graph.communities,
        key=lambda community: (community.level, -len(community.entities), community.id),
    )
    return {
        "digest": graph.digest,
        "index": graph.description.index,
        "settings": dict(graph.description.settings),
        "counts": dict(graph.description.counts),
        "entities": [
            {
                "name": graph.entities[number].name,
                "edges": len(graph.edges_of.get(number, ())),
                "passages": len(graph.entities[number].rows),
            }
            for number in order[:most]
        ],
        "communities": [
            {
                "id": community.id,
                "level": community.level,
                "entities": len(community.entities),
                "passages": len(community.rows),
                "title": community.report.title,
                "origin": community.report.origin,
            }
            for community in tops[:most]
        ],
    }


def describe_entity(graph: KnowledgeGraph, name: str, index: Index | None = None) -> dict[str, Any]:
    """Return an entity, its neighbors and its mentions, with text from the index if given.

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
    edges = [graph.edges[edge] for edge in graph.edges_of.get(number, ())]
    edges.sort(key=lambda edge: -edge.weight)
    return {
        **asdict(entity),
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
    """Check every span of a graph against the index; an empty list means consistent.

    Passages deleted from the index are not an issue: parts that depend on them are not returned.
    """
    sight = GraphVisibility(graph, index)
    texts: dict[int, str] = {}

    def read_span(row: int, start: int, end: int) -> str | None:
        """Return the text of a span; None if its passage is gone, empty if out of range."""
        if sight.row(row) is None:
            return None
        if row not in texts:
            texts[row] = index.passage(graph.sources[row].passage_id).text
        return texts[row][start:end] if 0 <= start < end <= len(texts[row]) else ""

    issues = [
        GraphIssue(f"entity {entity.name}", f"{text!r:.60} at {span} is not one of its names")
        for entity in graph.entities
        for span in entity.mentions
        if (text := read_span(*span)) is not None and not _is_named(entity, text)
    ]
    issues += [
        GraphIssue(
            f"edge {graph.entities[edge.source].name} - {graph.entities[edge.target].name}",
            f"no text at {span}",
        )
        for edge in graph.edges
        for span in edge.mentions
        if read_span(*span) == ""
    ]
    issues += [
        GraphIssue(
            f"report {community.report.title}", f"{finding.text!r:.60} cites no text at {span}"
        )
        for community in graph.communities
        for finding in community.report.findings
        for span in finding.spans
        if read_span(*span) == ""
    ]
    return issues


def _is_named(entity: Entity, text: str) -> bool:
    known = {normalize_name(name) for name in (entity.name, *entity.aliases)} | {entity.key}
    return normalize_name(" ".join(text.split())) in known


def _describe_mention(
    graph: KnowledgeGraph, index: Index | None, row: int, start: int, end: int
) -> dict[str, Any]:
    source = graph.sources[row]
    description: dict[str, Any] = {"passage": source.passage_id, "start": start, "end": end}
    if index is not None:
        try:
            passage = index.passage(source.passage_id)
        except DataError:
            return {**description, "gone": True}
        description["location"] = str(passage.location)
        description["text"] = " ".join(passage.text[max(start - 60, 0) : end + 60].split())
    return description
