"""Graph: a finished graph over an index, open for searching from several threads.

A graph is derived from one state of an index, and searched together with one: what the index does
not hold any more, or does not let its reader see, is not found by the graph either. A passage is
asked for by its id; an entity or an edge counts where one passage under it is there; a report is
given only where every passage under it is, since its words come from all of them.

Does not know: what was added to the index since. ``tell_age`` says when that may be.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from stillroom.errors import DataError, IntegrityError
from stillroom.provenance import find_output
from stillroom.rag.graph_files import (
    COMMUNITIES,
    EDGE_VECTORS,
    EDGES,
    ENTITIES,
    ENTITY_VECTORS,
    REPORT_VECTORS,
    SOURCES,
    read_graph_description,
    read_rows,
)
from stillroom.rag.graph_parts import Community, Edge, Entity, SourcePassage
from stillroom.rag.graph_resolve import merge_key
from stillroom.rag.notices import notice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.index import Index

__all__ = ["Graph", "Sight", "open_graph"]

_LONGEST_NAME = 6


class Graph:
    """A finished graph; use ``open``, or ``open_graph``, which keeps the last ones."""

    def __init__(self, folder: Path, *, verify: bool) -> None:
        """Read the files of ``folder``; callers use ``open``."""
        self.folder = folder
        self.description = read_graph_description(folder, verify=verify)
        self.sources = [SourcePassage(*row) for row in read_rows(folder / SOURCES)]
        self.entities = [Entity.from_json(row) for row in read_rows(folder / ENTITIES)]
        self.edges = [Edge.from_json(row) for row in read_rows(folder / EDGES)]
        self.communities = [Community.from_json(row) for row in read_rows(folder / COMMUNITIES)]
        self.entity_vectors = _read_vectors(folder / ENTITY_VECTORS)
        self.edge_vectors = _read_vectors(folder / EDGE_VECTORS)
        self.report_vectors = _read_vectors(folder / REPORT_VECTORS)
        self.edges_of: dict[int, list[int]] = defaultdict(list)
        """The numbers of an entity's edges."""
        for number, edge in enumerate(self.edges):
            self.edges_of[edge.source].append(number)
            self.edges_of[edge.target].append(number)
        self._names: dict[str, int] = {}
        for number, entity in enumerate(self.entities):
            for name in (*entity.aliases, entity.name):
                self._names.setdefault(merge_key(name), number)
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
        return cls(find_output(Path(path), "index"), verify=verify)

    @property
    def digest(self) -> str:
        """The digest of the graph."""
        return self.description.digest

    def find(self, name: str) -> int | None:
        """Return the number of the entity that has a name or alias, in any case and number."""
        return self._names.get(merge_key(name))

    def named_in(self, text: str) -> list[int]:
        """Return the entities that a text names, in order; of overlapping names the longest."""
        words = text.split()
        found: dict[int, None] = {}
        at = 0
        while at < len(words):
            for size in range(min(_LONGEST_NAME, len(words) - at), 0, -1):
                number = self.find(" ".join(words[at : at + size]))
                if number is not None:
                    found.setdefault(number)
                    at += size - 1
                    break
            at += 1
        return list(found)

    def check_embedder(self, index: Index) -> None:
        """Refuse an index whose vectors cannot be compared with the graph's.

        Raises:
            IntegrityError: If another embedder made the graph's.
        """
        if self.description.embedder != index.embedder.fingerprint:
            raise IntegrityError(
                f"the graph was made with embedder {self.description.embedder}, but the index has "
                f"{index.embedder.fingerprint}",
                code="rag.graph-embedder",
                where=str(self.folder),
                expected="the index that the graph was made from, or a later state of it",
                next="make the graph again: stillroom rag graph INDEX --out GRAPH --overwrite",
            )

    def tell_age(self, index: Index) -> None:
        """Notice that the index is in another state than the one that the graph was made from."""
        if self.description.index != index.digest:
            notice(
                "the index has changed since the graph was made: what was added is not in it "
                "(stillroom rag graph INDEX --out GRAPH --overwrite brings it up to date)"
            )

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


class Sight:
    """What of a graph an index lets its reader see; looks every passage up once."""

    def __init__(self, graph: Graph, index: Index) -> None:
        """Look at ``graph`` through ``index``."""
        self._graph, self._index = graph, index
        self._rows: dict[int, int | None] = {}

    def row(self, source: int) -> int | None:
        """Return the index row of a source, or None where the index has no such passage."""
        if source not in self._rows:
            try:
                self._rows[source] = self._index.row_of(self._graph.sources[source].passage_id)
            except DataError:
                self._rows[source] = None
        return self._rows[source]

    def rows(self, sources: Iterable[int]) -> list[int]:
        """Return the index rows of those sources that can be seen, in order."""
        found = (self.row(source) for source in sources)
        return [row for row in found if row is not None]

    def sees(self, part: Entity | Edge) -> bool:
        """Return whether one passage under an entity or an edge can be seen."""
        return any(self.row(row) is not None for row, _, _ in part.mentions)

    def sees_report(self, community: Community) -> bool:
        """Return whether every passage under a community's report can be seen."""
        return all(self.row(row) is not None for row in community.rows)

    def best_entities(self, scores: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
        """Return the best entities that can be seen, with their scores above 0."""
        return list(self._best(scores, self._graph.entities, count))

    def best_edges(self, scores: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
        """Return the best edges that can be seen, with their scores above 0."""
        return list(self._best(scores, self._graph.edges, count))

    def _best(
        self, scores: NDArray[np.float32], parts: list[Entity] | list[Edge], count: int
    ) -> Iterator[tuple[int, float]]:
        given = 0
        for at in np.lexsort((np.arange(len(scores)), -scores)):
            if given >= count or scores[at] <= 0:
                return
            if self.sees(parts[int(at)]):
                given += 1
                yield int(at), float(scores[at])


_OPENING = threading.Lock()


def open_graph(path: Path | str) -> Graph:
    """Return the graph at ``path``; the last ones stay open until their files change.

    Raises:
        DataError: If the path is missing or another kind of artifact.
        IntegrityError: If a file is missing, half-written or changed.
    """
    folder = find_output(Path(path), "index")
    mark = folder / "graph.json"
    changed = mark.stat().st_mtime_ns if mark.is_file() else 0
    with _OPENING:
        return _open_kept(folder.absolute(), changed)


@lru_cache(maxsize=4)
def _open_kept(folder: Path, changed: int) -> Graph:
    return Graph.open(folder)


def _read_vectors(path: Path) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return vectors
