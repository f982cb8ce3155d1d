"""Incremental graph update: extractions, generated texts and vectors of the previous graph reused.

Each completion is written to a file in the job's scratch folder as soon as it is done; those used
by the finished graph are stored in it, so that an update calls the model only for what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import StillroomError
from stillroom.models import CompletionCache
from stillroom.models.cache import CachedModel
from stillroom.rag.graph.knowledge_graph import KnowledgeGraph
from stillroom.rag.graph.types import EXTRACTIONS, GENERATED_TEXTS, read_rows
from stillroom.rag.interfaces import PassageExtraction
from stillroom.rag.model_calls import open_optional_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job
    from stillroom.models import Embedder, TextModel
    from stillroom.records import Prompt, Sampling

__all__ = [
    "CachedTextGenerator",
    "IncrementalEmbedder",
    "PreviousGraph",
    "open_generator",
    "open_previous_graph",
]


@dataclass(frozen=True, slots=True)
class PreviousGraph:
    """Extractions by key, generated texts by key, and vectors by text."""

    extractions: dict[str, PassageExtraction] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    embedder: str = ""
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def vector(self, text: str, embedder: str) -> NDArray[np.float32] | None:
        """Return the vector of a text from the given embedder, or None."""
        return self.vectors.get(text) if embedder == self.embedder else None


def open_previous_graph(job: Job) -> PreviousGraph:
    """Return the contents of the previous graph at the job's path; empty if missing or damaged.

    A damaged graph is reported, and everything is then built anew.
    """
    if job.previous is None:
        return PreviousGraph()
    try:
        graph = KnowledgeGraph.open(job.previous)
        extractions = dict(read_rows(graph.folder / EXTRACTIONS, tuple[str, PassageExtraction]))
        written = dict(read_rows(graph.folder / GENERATED_TEXTS, tuple[str, str]))
    except StillroomError as error:
        job.say(f"nothing is reused from {job.previous}: {error.problems[0].what}")
        return PreviousGraph()
    vectors: dict[str, NDArray[np.float32]] = {}
    for i, entity in enumerate(graph.entities):
        vectors[entity.text] = np.asarray(graph.entity_vectors[i])
    for i, community in enumerate(graph.communities):
        vectors[community.report.text or community.id] = np.asarray(graph.report_vectors[i])
    return PreviousGraph(extractions, written, graph.description.embedder, vectors)


_BATCH = 64


class IncrementalEmbedder:
    """Embeds texts that have no known vector; ``embedded`` counts them."""

    def __init__(self, embedder: Embedder, previous: PreviousGraph, job: Job) -> None:
        """Use the index's embedder, in batches between which the job may be cancelled."""
        self._embedder, self._previous, self._job = embedder, previous, job
        self.embedded = 0

    def __call__(
        self, texts: Sequence[str], advance: Callable[[int], None] = lambda count: None
    ) -> NDArray[np.float32]:
        """Return the vectors of non-empty texts, (N, D).

        Raises:
            Cancelled: If the job was cancelled.
        """
        mark = self._embedder.fingerprint
        vectors = np.zeros((len(texts), self._embedder.dimensions), dtype=np.float32)
        missing = []
        for i, text in enumerate(texts):
            known = self._previous.vector(text, mark)
            if known is None:
                missing.append(i)
            else:
                vectors[i] = known
        advance(len(texts) - len(missing))
        for start in range(0, len(missing), _BATCH):
            self._job.check_cancelled()
            batch = missing[start : start + _BATCH]
            vectors[batch] = self._embedder.embed([texts[i] for i in batch], kind="passage")
            advance(len(batch))
        self.embedded += len(missing)
        return vectors


class CachedTextGenerator:
    """A text model behind two caches; ``used`` holds the returned texts by key."""

    def __init__(
        self, model: TextModel, path: Path, known: Mapping[str, str], reference: str = ""
    ) -> None:
        """Wrap ``model``.

        ``known`` has the texts of the previous graph, by key.
        """
        self.reference = reference or model.name
        self._cache = CompletionCache(path)
        self._known = known
        self.model = CachedModel(model, self._cache)
        """The model behind the completion file."""
        self.used: dict[str, str] = {}
        self.asked = 0
        """Number of texts found in neither cache."""

    def ask(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[str]:
        """Return the text of every prompt, in order; fewer if cancelled."""
        keys = [
            self._cache.cache_key(self.model.fingerprint, prompt, sampling) for prompt in prompts
        ]
        texts = {key: self._known[key] for key in keys if key in self._known}
        missing = [i for i, key in enumerate(keys) if key not in texts]
        before = self.model.hits
        completions = self.model.generate(
            [prompts[i] for i in missing], sampling, is_cancelled=is_cancelled
        )
        self.asked += len(missing) - (self.model.hits - before)
        for i, completion in zip(missing, completions, strict=True):
            if completion.finish_reason == "cancelled":
                return [texts[key] for key in keys[:i]]
            texts[keys[i]] = completion.text
        self.used.update((key, texts[key]) for key in keys)
        return [texts[key] for key in keys]

    def close(self) -> None:
        """Close the completion file; the model stays open."""
        self._cache.close()


@contextmanager
def open_generator(
    reference: str | None, job: Job, previous: PreviousGraph, model: TextModel | None = None
) -> Iterator[CachedTextGenerator | None]:
    """Yield the text model of a job behind its caches; None without a model.

    ``model`` replaces the named one; the caller closes it.
    """
    with open_optional_model(reference, model) as opened:
        if opened is None:
            yield None
            return
        path = job.scratch / "completions.sqlite"
        with closing(
            CachedTextGenerator(opened, path, previous.written, reference or "")
        ) as generator:
            yield generator
