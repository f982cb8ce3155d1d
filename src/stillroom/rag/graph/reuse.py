"""Reuse of extractions, generated texts and vectors from the previous graph or tree.

Every completion is kept in a file beside the job as soon as it is done; those that the finished
graph uses are part of it, so that bringing it up to date asks only for what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import StillroomError
from stillroom.models import CompletionCache
from stillroom.models.cache import CachedModel
from stillroom.rag.graph.knowledge_graph import KnowledgeGraph
from stillroom.rag.graph.summary_tree import SummaryTree
from stillroom.rag.graph.types import EXTRACTIONS, GENERATED_TEXTS, read_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job
    from stillroom.models import Embedder, TextModel
    from stillroom.records import Prompt, Sampling

__all__ = [
    "CachedTextGenerator",
    "IncrementalEmbedder",
    "PreviousGraph",
    "open_previous_graph",
    "open_previous_tree",
]


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
        graph = KnowledgeGraph.open(job.previous)
        extractions = dict(read_rows(graph.folder / EXTRACTIONS))
        written = dict(read_rows(graph.folder / GENERATED_TEXTS))
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
        tree = SummaryTree.open(job.previous)
        written = dict(read_rows(tree.folder / GENERATED_TEXTS))
    except StillroomError as error:
        job.say(f"nothing is taken over from {job.previous}: {error.problems[0].what}")
        return PreviousGraph()
    vectors = {node.text: np.asarray(tree.vectors[at]) for at, node in enumerate(tree.nodes)}
    return PreviousGraph({}, written, tree.description.embedder, vectors)


_BATCH = 64


class IncrementalEmbedder:
    """Gives texts their vectors; ``embedded`` counts those that were not known before."""

    def __init__(self, embedder: Embedder, previous: PreviousGraph, job: Job) -> None:
        """Embed by the index's own embedder, a batch at a time between which a job may stop."""
        self._embedder, self._previous, self._job = embedder, previous, job
        self.embedded = 0

    def __call__(
        self, texts: Sequence[str], advance: Callable[[int], None] = lambda count: None
    ) -> NDArray[np.float32]:
        """Return one row for each text, (N, D); none of them is empty.

        Raises:
            Cancelled: If the job was asked to stop.
        """
        mark = self._embedder.fingerprint
        vectors = np.zeros((len(texts), self._embedder.dimensions), dtype=np.float32)
        missing = []
        for at, text in enumerate(texts):
            known = self._previous.vector(text, mark)
            if known is None:
                missing.append(at)
            else:
                vectors[at] = known
        advance(len(texts) - len(missing))
        for start in range(0, len(missing), _BATCH):
            self._job.check_cancelled()
            batch = missing[start : start + _BATCH]
            vectors[batch] = self._embedder.embed([texts[at] for at in batch], kind="passage")
            advance(len(batch))
        self.embedded += len(missing)
        return vectors


class CachedTextGenerator:
    """A model behind two caches; ``used`` are the texts that were given, by key."""

    def __init__(self, model: TextModel, path: Path, known: Mapping[str, str]) -> None:
        """Ask ``model``.

        Args:
            model: Closed by its owner.
            path: The file of completions beside the job.
            known: Texts of the previous graph, by key.
        """
        self._cache = CompletionCache(path)
        self._known = known
        self.model = CachedModel(model, self._cache)
        """Asks only for what the file does not hold."""
        self.used: dict[str, str] = {}
        self.asked = 0
        """How many texts were in neither cache."""

    def ask(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[str]:
        """Return the text of every prompt, in order; fewer where it was cancelled."""
        keys = [self._cache.key(self.model.fingerprint, one, sampling) for one in prompts]
        texts = {key: self._known[key] for key in keys if key in self._known}
        missing = [at for at, key in enumerate(keys) if key not in texts]
        before = self.model.hits
        done = self.model.generate(
            [prompts[at] for at in missing], sampling, is_cancelled=is_cancelled
        )
        self.asked += len(missing) - (self.model.hits - before)
        for at, completion in zip(missing, done, strict=True):
            if completion.finish_reason == "cancelled":
                return [texts[key] for key in keys[:at]]
            texts[keys[at]] = completion.text
        self.used.update((key, texts[key]) for key in keys)
        return [texts[key] for key in keys]

    def close(self) -> None:
        """Close the file; the model stays open."""
        self._cache.close()
