"""Graph: a finished graph over an index, open for searching from several threads.

A graph is derived from one state of an index, and searched together with one: what the index does
not hold any more, or does not let its reader see, is not found by the graph either. A passage is
asked for by its id; an entity or an edge counts where one passage under it is there; a report is
given only where every passage under it is, since its words come from all of them.

Does not know: what was added to the index since. ``meet_index`` says when that may be.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from stillroom.errors import DataError, IntegrityError
from stillroom.rag.graphs.files import (
    COMMUNITIES,
    EDGE_VECTORS,
    EDGES,
    ENTITIES,
    ENTITY_VECTORS,
    REPORT_VECTORS,
    SOURCES,
    find_graph,
    read_graph_description,
    read_rows,
)
from stillroom.rag.graphs.parts import Community, Edge, Entity, SourcePassage
from stillroom.rag.graphs.resolve import merge_key
from stillroom.rag.notices import notice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.graphs.tree import Tree
    from stillroom.rag.index import Index

__all__ = ["Graph", "Sight", "meet_index", "open_graph"]

_LONGEST_NAME = 6


class Graph:
    """A finished graph; use ``open``, or ``open_graph``, which keeps the last ones."""

    def __init__(self, folder: Path, *, verify: bool) -> None:
        """Read the files of ``folder``; callers use ``open``."""
        self.folder = folder
        self.description = read_graph_description(folder, "graph", verify=verify)
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
        self.entities_of: dict[int, list[int]] = defaultdict(list)
        """The numbers of the entities that a source mentions."""
        for number, entity in enumerate(self.entities):
            for row in entity.rows:
                self.entities_of[row].append(number)
        self._rows = {source.passage_id: row for row, source in enumerate(self.sources)}
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
        return cls(find_graph(Path(path), "graph"), verify=verify)

    @property
    def digest(self) -> str:
        """The digest of the graph."""
        return self.description.digest

    def find(self, name: str) -> int | None:
        """Return the number of the entity that has a name or alias, in any case and number."""
        return self._names.get(merge_key(name))

    def source_of(self, passage_id: str) -> int | None:
        """Return the row of the source that is a passage, None for one that is newer."""
        return self._rows.get(passage_id)

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

    def meet(self, index: Index) -> Sight:
        """Return what of the graph an index lets its reader see; see ``meet_index``."""
        return meet_index(self, index)

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
    """What of a graph or tree an index lets its reader see; looks every passage up once."""

    def __init__(self, made: Graph | Tree, index: Index) -> None:
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

    def sees(self, part: Entity | Edge) -> bool:
        """Return whether one passage under an entity or an edge can be seen."""
        return any(self.row(row) is not None for row, _, _ in part.mentions)

    def sees_all(self, sources: Iterable[int]) -> bool:
        """Return whether every one of the passages under a report or summary can be seen."""
        return all(self.row(source) is not None for source in sources)

    def best(
        self, scores: NDArray[np.float32], parts: Sequence[Entity] | Sequence[Edge], count: int
    ) -> Iterator[tuple[int, float]]:
        """Yield the best parts that can be seen, at most ``count``, with their scores above 0."""
        given = 0
        for at in np.lexsort((np.arange(len(scores)), -scores)):
            if given >= count or scores[at] <= 0:
                return
            if self.sees(parts[int(at)]):
                given += 1
                yield int(at), float(scores[at])


def meet_index(made: Graph | Tree, index: Index) -> Sight:
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
        notice(
            f"the index has changed since the {what} was made: what was added is not in it "
            f"({again} brings it up to date)"
        )
    return Sight(made, index)


_OPENING = threading.Lock()


def open_graph(path: Path | str) -> Graph:
    """Return the graph at ``path``; the last ones stay open until their files change.

    Raises:
        DataError: If the path is missing or another kind of artifact.
        IntegrityError: If a file is missing, half-written or changed.
    """
    folder = find_graph(Path(path), "graph")
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
