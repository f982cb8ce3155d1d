"""Vectors of the texts of a graph or tree: those of the one before it, and the others embedded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job
    from stillroom.models import Embedder
    from stillroom.rag.graphs.previous import PreviousGraph

__all__ = ["TextVectors"]

_AT_ONCE = 64


class TextVectors:
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
        for start in range(0, len(missing), _AT_ONCE):
            self._job.check_cancelled()
            batch = missing[start : start + _AT_ONCE]
            vectors[batch] = self._embedder.embed([texts[at] for at in batch], kind="passage")
            advance(len(batch))
        self.embedded += len(missing)
        return vectors
