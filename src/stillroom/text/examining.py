"""Who is asked where a file comes from before it is read: nobody, unless a flow says who.

A picture or a document may say of itself who made it. Rooms do not know each other, so the flow,
which knows all, names an examiner while a job runs, and reading asks it for every file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from stillroom.records import Origin

__all__ = ["Examiner", "examine_file", "examined_by"]

Examiner = Callable[[Path, Origin], tuple[Origin, tuple[str, ...]]]
"""Given a file and what is known of its origin: the origin, and what is to be told of it."""

_ASKED: ContextVar[Examiner | None] = ContextVar("examiner", default=None)


@contextmanager
def examined_by(examiner: Examiner) -> Iterator[None]:
    """Let an examiner be asked of every file that is read meanwhile."""
    token = _ASKED.set(examiner)
    try:
        yield
    finally:
        _ASKED.reset(token)


def examine_file(path: Path, origin: Origin) -> tuple[Origin, tuple[str, ...]]:
    """Return a file's origin after the examiner looked at it, and what is to be told of it."""
    examiner = _ASKED.get()
    return examiner(path, origin) if examiner is not None else (origin, ())
