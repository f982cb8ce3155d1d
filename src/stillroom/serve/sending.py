"""Sending: what is heard of an order, told in the dialect that it came in, whole or as events.

The one way of every answer, whichever dialect asks: waiting, threads, and what is counted are the
same. Knows nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from stillroom.serve.counters import CLOCK, Clock, Counters
from stillroom.serve.hearing import Heard, Item, Said, sum_usage
from stillroom.serve.refusals import Refusal, client_left, explain
from stillroom.serve.replies import encode
from stillroom.serve.slots import IsStopped, Slots, Work

__all__ = ["Dialect", "send"]


class Dialect(Protocol):
    """How one reply is told."""

    def whole(self, heard: Sequence[Heard]) -> dict[str, Any]:
        """Return all of it in one object.

        Raises:
            BackendError: If another server gave up on it.
        """

    def begin(self, heard: Sequence[Heard]) -> Iterator[bytes]:
        """Yield the events that come before anything is said."""

    def tell(self, at: int, item: Item | None, heard: Heard) -> Iterator[bytes]:
        """Yield the events of what was just heard of a text; of None, those of its end.

        Raises:
            BackendError: If another server gave up on it.
        """

    def end(self, heard: Sequence[Heard]) -> Iterator[bytes]:
        """Yield the events that come last."""

    def fail(self, refusal: Refusal) -> Iterator[bytes]:
        """Yield the events that come last where something fails after the first one."""


async def send(
    slots: Slots,
    work: Work[Iterator[Item]],
    heard: Sequence[Heard],
    reply: Dialect,
    request: Request,
    counters: Counters,
    *,
    is_streamed: bool,
) -> Response:
    """Send what the work gives of each text: event by event, or whole.

    Raises:
        Refusal: If it fails before anything is sent, or the client leaves.
    """
    clock: Clock | None = request.scope.get(CLOCK)

    def listen(is_stopped: IsStopped) -> Iterator[Said]:
        """Hear on the work's own thread, where counting tokens may take its time."""
        for at, items in enumerate(work(is_stopped)):
            for item in items:
                heard[at].take(item)
                yield at, item
            if is_stopped():
                return
            begun = time.perf_counter()
            heard[at].end()
            if clock is not None:  # counting is our own work, though the engine is asked
                clock.engine_s -= time.perf_counter() - begun
            yield at, None

    items = slots.stream(listen, request)
    if is_streamed:
        # The first item is awaited here, so that what fails at once fails with a status.
        first = await anext(items, None)
        events = _tell(first, items, heard, reply, counters)
        return StreamingResponse(events, media_type="text/event-stream")
    async with aclosing(items) as opened:  # type: ignore[type-var]  # a generator
        async for _ in opened:
            pass
    if any(one.spent is None for one in heard):
        raise client_left()
    counters.count_reply(sum_usage(heard), *(one.details for one in heard))
    return Response(encode(reply.whole(heard)), media_type="application/json")


async def _tell(
    first: Said | None,
    items: AsyncIterator[Said],
    heard: Sequence[Heard],
    reply: Dialect,
    counters: Counters,
) -> AsyncIterator[bytes]:
    """Yield a reply's events; an error after the first ends the stream as the dialect has it."""
    for event in reply.begin(heard):
        yield event
    async with aclosing(items) as opened:  # type: ignore[type-var]  # ours is a generator
        try:
            if first is not None:
                for event in reply.tell(*first, heard[first[0]]):
                    yield event
            async for at, item in opened:
                for event in reply.tell(at, item, heard[at]):
                    yield event
        except Exception as error:  # noqa: BLE001  # the status is sent: only an event is left
            for event in reply.fail(explain(error)):
                yield event
            return
    if any(one.spent is None for one in heard):
        return
    counters.count_reply(sum_usage(heard), *(one.details for one in heard))
    for event in reply.end(heard):
        yield event
