"""Streams: what a model yields as it writes, and the completion that it returns at the end."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from stillroom.records import Completion

__all__ = ["with_end"]

T = TypeVar("T")


def with_end(stream: Generator[T, None, Completion]) -> Generator[T | Completion]:
    """Yield what a model's stream yields, and last the completion that it returns.

    To be read where the completion matters as well as what comes before it: a ``for`` loop drops
    what a generator returns. Who leaves midway closes the stream.
    """
    yield (yield from stream)
