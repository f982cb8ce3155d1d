"""Models that read two texts together, opened once and shared by the methods that name them."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.models.entailment import EntailmentModel
    from stillroom.models.protocols import Reranker

__all__ = ["open_entailment", "open_shared"]

_LOCK = threading.Lock()
_KEPT = 2


def open_shared(reference: str, **settings: Any) -> Reranker:
    """Return the model of a reference, opened by the first who asks; the last two are kept.

    Args:
        reference: As ``stillroom.models.open_reranker`` takes it.
        settings: As that takes them; other settings are another model.

    Raises:
        CheckpointError: If the reference leads to no cross-encoder.
        BackendError: If an address cannot be one.
    """
    with _LOCK:
        return _open(reference, tuple(sorted(settings.items())))


def open_entailment(reference: str, *, device: str = "cpu") -> EntailmentModel:
    """Return the model of natural language inference of a reference; the last two are kept.

    Raises:
        CheckpointError: If the reference leads to no such checkpoint.
    """
    with _LOCK:
        return _open_entailment(reference, device)


@lru_cache(maxsize=_KEPT)
def _open_entailment(reference: str, device: str) -> EntailmentModel:
    from stillroom.models.entailment import EntailmentModel
    from stillroom.models.hub import resolve_checkpoint

    return EntailmentModel(resolve_checkpoint(reference), device=device)


@lru_cache(maxsize=_KEPT)
def _open(reference: str, settings: tuple[tuple[str, Any], ...]) -> Reranker:
    from stillroom.models import open_reranker

    return open_reranker(reference, **dict(settings))
