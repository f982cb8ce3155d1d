"""What a method had to do otherwise than asked, told to whoever asked, never silent.

Methods call ``notice``. Who collects gets the text (an answer keeps it in its details, an
evaluation counts it); where nobody collects, it is a Python warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["collect_notices", "notice"]

_TOLD: ContextVar[list[str] | None] = ContextVar("stillroom_rag_notices", default=None)


def notice(text: str) -> None:
    """Say what was done otherwise; one sentence, without any of the documents' text."""
    told = _TOLD.get()
    if told is None:
        warnings.warn(text, UserWarning, stacklevel=2)
    else:
        told.append(text)


@contextmanager
def collect_notices() -> Iterator[list[str]]:
    """Yield the list that gets every notice of the body, this thread's alone."""
    told: list[str] = []
    token = _TOLD.set(told)
    try:
        yield told
    finally:
        _TOLD.reset(token)
