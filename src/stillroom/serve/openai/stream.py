"""Streaming (SSE) or whole replies, of local and proxied models (``send_response``).

All API formats share this path: queueing, threads and token counts (``collectors``) are the same.
Knows nothing of models, clients or reply formats: the JSON of the events is in ``replies``.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from stillroom.models.endpoints.transport import get_first_choice
from stillroom.records import Answer
from stillroom.serve.errors import ApiError, client_disconnected, to_api_error
from stillroom.serve.middleware.concurrency import IsStopped, Work, WorkerSlots
from stillroom.serve.middleware.metrics import TIMING_KEY, RequestTiming, ServerMetrics
from stillroom.serve.openai.collectors import OutputItem, ResponseCollector, sum_usage

__all__ = ["ResponseFormat", "StreamItem", "encode_json", "send_response"]

_COMPACT = (",", ":")
"""Separators of JSON without spaces, as in whole replies."""

StreamItem = tuple[int, OutputItem | None]
"""Index of the text in the reply, and its item; None marks the end of a text."""


class ResponseFormat(Protocol):
    """Format of one reply."""

    @property
    def answer_id(self) -> str:
        """Id of the reply, by which the evidence of its answers is fetched."""

    def render(self, collectors: Sequence[ResponseCollector]) -> dict[str, Any]:
        """Return the reply as one object.

        Raises:
            BackendError: If another server failed.
        """

    def start_events(self, collectors: Sequence[ResponseCollector]) -> Iterator[bytes]:
        """Yield the opening events."""

    def item_events(
        self, index: int, item: OutputItem | None, collector: ResponseCollector
    ) -> Iterator[bytes]:
        """Yield the events of the latest item of a text; for None, those of its end.

        Raises:
            BackendError: If another server failed.
        """

    def end_events(self, collectors: Sequence[ResponseCollector]) -> Iterator[bytes]:
        """Yield the closing events."""

    def error_events(self, refusal: ApiError) -> Iterator[bytes]:
        """Yield the closing events of a stream that fails after its first event."""


async def send_response(
    slots: WorkerSlots,
    work: Work[Iterator[OutputItem]],
    collectors: Sequence[ResponseCollector],
    reply: ResponseFormat,
    request: Request,
    counters: ServerMetrics,
    *,
    is_streamed: bool,
    make_mark: Callable[[ResponseCollector], str] | None = None,
) -> Response:
    """Send the generated texts: event by event, or whole.

    ``make_mark`` returns the content credential of a finished text, which is sent as its last
    piece.

    Raises:
        ApiError: If it fails before anything is sent, or the client disconnects.
    """
    clock: RequestTiming = request.scope.get(TIMING_KEY) or RequestTiming()

    def listen(is_stopped: IsStopped) -> Iterator[StreamItem]:
        """Collect items on the worker thread, since counting tokens may be slow."""
        for index, items in enumerate(work(is_stopped)):
            for item in items:
                collectors[index].add(item)
                if _has_token(item):
                    clock.mark_token()
                yield index, item
            if is_stopped():
                return
            begun = time.perf_counter()
            collectors[index].finish()
            if make_mark is not None:
                collectors[index].mark = make_mark(collectors[index])
                yield index, collectors[index].mark
            # This is the server's own work, not the engine's.
            clock.engine_s -= time.perf_counter() - begun
            yield index, None

    items = slots.stream(listen, request)
    if is_streamed:
        # The first item is awaited here, so that an immediate failure gets an HTTP status.
        first = await anext(items, None)
        events = _stream_events(first, items, collectors, reply, counters)
        return StreamingResponse(events, media_type="text/event-stream")
    async with aclosing(items) as opened:  # type: ignore[type-var]  # a generator
        async for _ in opened:
            pass
    if any(collector.spent is None for collector in collectors):
        raise client_disconnected()
    counters.count_reply(sum_usage(collectors), *(collector.details for collector in collectors))
    return Response(encode_json(reply.render(collectors)), media_type="application/json")


def _has_token(item: OutputItem) -> bool:
    """Return whether an item brings text.

    The first chunks of other servers hold a role alone; of a whole reply the time of its first
    token is not known.
    """
    if isinstance(item, dict):
        delta = get_first_choice(item).get("delta")
        parts = delta.items() if isinstance(delta, dict) else ()
        return any(value for key, value in parts if key != "role")
    if isinstance(item, Answer):
        return bool(item.completion.text)
    return bool(item if isinstance(item, str) else getattr(item, "text", ""))


async def _stream_events(
    first: StreamItem | None,
    items: AsyncIterator[StreamItem],
    collectors: Sequence[ResponseCollector],
    reply: ResponseFormat,
    counters: ServerMetrics,
) -> AsyncIterator[bytes]:
    """Yield the events of a reply; a late error ends the stream in the format of the API."""
    for event in reply.start_events(collectors):
        yield event
    async with aclosing(items) as opened:  # type: ignore[type-var]  # ours is a generator
        try:
            if first is not None:
                for event in reply.item_events(*first, collectors[first[0]]):
                    yield event
            async for index, item in opened:
                for event in reply.item_events(index, item, collectors[index]):
                    yield event
        except Exception as error:  # noqa: BLE001  # the status is sent: only an event is left
            for event in reply.error_events(to_api_error(error)):
                yield event
            return
    if any(collector.spent is None for collector in collectors):
        return
    counters.count_reply(sum_usage(collectors), *(collector.details for collector in collectors))
    for event in reply.end_events(collectors):
        yield event


def encode_json(value: object) -> bytes:
    """Return a value as JSON; lone surrogates, which are invalid in UTF-8, stay escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=_COMPACT).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=_COMPACT).encode()
