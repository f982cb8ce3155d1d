"""What a graph or tree that is brought up to date takes over from the one before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import StillroomError
from stillroom.rag.graphs.files import EXTRACTIONS, WRITTEN, read_rows
from stillroom.rag.graphs.graph import Graph
from stillroom.rag.graphs.tree import Tree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job

__all__ = ["PreviousGraph", "open_previous_graph", "open_previous_tree"]


@dataclass(frozen=True, slots=True)
class PreviousGraph:
    """Extractions by key, written texts by key, and vectors by text."""

    extractions: dict[str, Any] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    embedder: str = ""
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def vector(self, text: str, embedder: str) -> NDArray[np.float32] | None:
        """Return the vector that an embedder gave a text, or None."""
        return self.vectors.get(text) if embedder == self.embedder else None


def open_previous_graph(job: Job) -> PreviousGraph:
    """Return what the graph at the job's place holds; nothing where there is none or it is broken.

    A damaged one is said: everything is then made anew.
    """
    if job.previous is None:
        return PreviousGraph()
    try:
        graph = Graph.open(job.previous)
        extractions = dict(read_rows(graph.folder / EXTRACTIONS))
        written = dict(read_rows(graph.folder / WRITTEN))
    except StillroomError as error:
        job.say(f"nothing is taken over from {job.previous}: {error.problems[0].what}")
        return PreviousGraph()
    vectors: dict[str, NDArray[np.float32]] = {}
    for at, entity in enumerate(graph.entities):
        vectors[entity.text] = np.asarray(graph.entity_vectors[at])
    for at, community in enumerate(graph.communities):
        vectors[community.report.text or community.id] = np.asarray(graph.report_vectors[at])
    return PreviousGraph(extractions, written, graph.description.embedder, vectors)


def open_previous_tree(job: Job) -> PreviousGraph:
    """Return what the tree at the job's place holds; see ``open_previous_graph``."""
    if job.previous is None:
        return PreviousGraph()
    try:
        tree = Tree.open(job.previous)
        written = dict(read_rows(tree.folder / WRITTEN))
    except StillroomError as error:
        job.say(f"nothing is taken over from {job.previous}: {error.problems[0].what}")
        return PreviousGraph()
    vectors = {node.text: np.asarray(tree.vectors[at]) for at, node in enumerate(tree.nodes)}
    return PreviousGraph({}, written, tree.description.embedder, vectors)
