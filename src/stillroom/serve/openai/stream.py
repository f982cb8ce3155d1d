"""Streaming (SSE) or whole replies of local and proxied models, and token usage.

All API formats share this path: queueing, threads and token counts are the same. Tokens are counted
on the worker thread, since counting may be slow. Knows nothing of models, clients or reply formats:
the JSON of the events is in ``replies``.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from typing_extensions import override

from stillroom.models import TextModel
from stillroom.models.endpoints.transport import get_first_choice, read_count, read_finish_reason
from stillroom.models.interfaces import CountingModel, DenoisingStep
from stillroom.records import Answer, Citation, Completion, Prompt
from stillroom.serve.errors import ApiError, client_disconnected, to_api_error
from stillroom.serve.middleware.concurrency import IsStopped, Work, WorkerSlots
from stillroom.serve.middleware.metrics import TIMING_KEY, RequestTiming, ServerMetrics

__all__ = [
    "GenerationUsage",
    "LocalCollector",
    "OutputItem",
    "ProxyCollector",
    "ResponseCollector",
    "ResponseFormat",
    "StreamItem",
    "encode_json",
    "send_response",
    "sum_usage",
]

OutputItem = str | Completion | Answer | DenoisingStep | dict[str, Any]
"""Item of generated text; a dict is an answer or a chunk of another server."""
StreamItem = tuple[int, OutputItem | None]
"""Index of the text in the reply, and its item; None marks the end of a text."""


@dataclass(frozen=True, slots=True)
class GenerationUsage:
    """Tokens used by a text, and its finish reason.

    Args:
        usage: Tokens of the prompt, of the completion, and of both.
        finish_reason: ``stop`` or ``length``; of another server also ``content_filter``, and
            ``broken`` if it failed.
        cached_tokens: Prompt tokens that another server had cached.
        reasoning_tokens: Completion tokens that another server's model used for reasoning.
        is_reported: Whether tokens were counted at all; another server may not report them.
    """

    usage: dict[str, int]
    finish_reason: str
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    is_reported: bool = True


class ResponseCollector(ABC):
    """State of one text so far; updated on the worker thread."""

    citations: tuple[Citation, ...] | None = None
    details: Mapping[str, Any] = {}
    spent: GenerationUsage | None = None
    mark: str = ""
    """Content credential behind the text, as invisible characters."""

    @property
    @abstractmethod
    def text(self) -> str:
        """Text of the answer."""

    @property
    @abstractmethod
    def turns_before(self) -> int:
        """Number of messages before the last one."""

    @abstractmethod
    def add(self, item: OutputItem) -> None:
        """Add an item to the answer."""

    @abstractmethod
    def finish(self) -> None:
        """Count the tokens used."""


class LocalCollector(ResponseCollector):
    """Text that a local model generates."""

    def __init__(self, model: TextModel, prompt: Prompt) -> None:
        self._model, self._prompt = model, prompt
        self._pieces: list[str] = []
        self._completion: Completion | None = None

    @property
    @override
    def text(self) -> str:
        text = self._completion.text if self._completion else "".join(self._pieces)
        return text + self.mark

    @property
    def model(self) -> str:
        """Fingerprint of the model that wrote."""
        return (self._completion.model if self._completion else "") or self._model.fingerprint

    @property
    @override
    def turns_before(self) -> int:
        return len(self._prompt.messages) - 1

    @override
    def add(self, item: OutputItem) -> None:
        if isinstance(item, str):
            self._pieces.append(item)
        elif isinstance(item, Answer):
            self.citations, self.details = item.citations, item.details
            self._completion = item.completion
        elif isinstance(item, Completion):
            self._completion = item

    @override
    def finish(self) -> None:
        """Count the tokens used: as reported by the engine, or with its tokenizer."""
        done = self._completion or Completion(self.text)
        spent = done.completion_tokens
        if done.text and not spent:
            spent = self._model.count_tokens(done.text)
        usage = _build_usage(done.prompt_tokens or self._count_prompt(), spent)
        self.spent = GenerationUsage(usage, "length" if done.finish_reason == "length" else "stop")

    def _count_prompt(self) -> int:
        """Return the tokens of the prompt, including its template if the model can count them.

        The prompt with documents belongs to the answering method: its question alone is known.
        """
        if isinstance(self._model, CountingModel) and self.citations is None:
            return self._model.count_prompt(self._prompt)
        texts = [message.content for message in self._prompt.messages] or [self._prompt.text]
        return sum(self._model.count_tokens(text) for text in texts)


class ProxyCollector(ResponseCollector):
    """Text of another server, which is forwarded whole or chunk by chunk."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}
        self.has_choice = False
        self._usage: dict[str, Any] | None = None
        self._end: object = None

    @property
    @override
    def text(self) -> str:
        """Always empty: the forwarded answer may contain tool calls."""
        return ""

    @property
    @override
    def turns_before(self) -> int:
        return 0

    @override
    def add(self, item: OutputItem) -> None:
        if not isinstance(item, dict):
            return
        self.answer = item
        if isinstance(item.get("usage"), dict):
            self._usage = item["usage"]
        if choice := get_first_choice(item):
            self.has_choice = True
            self._end = choice.get("finish_reason") or self._end

    @override
    def finish(self) -> None:
        """Count the tokens used, as reported by the other server."""
        used = self._usage or {}
        read = read_count(used.get("prompt_tokens"))
        written = read_count(used.get("completion_tokens"))
        self.spent = GenerationUsage(
            _build_usage(read, written),
            read_finish_reason(self._end),
            _read_detail(used, "prompt_tokens_details", "cached_tokens"),
            _read_detail(used, "completion_tokens_details", "reasoning_tokens"),
            self._usage is not None,
        )


def _read_detail(usage: Mapping[str, Any], group: str, key: str) -> int:
    details = usage.get(group)
    return read_count(details.get(key)) if isinstance(details, dict) else 0


def sum_usage(collectors: Sequence[ResponseCollector]) -> dict[str, int]:
    """Return the usage of all texts of a reply; their common prompt counts once."""
    spent = [collector.spent.usage for collector in collectors if collector.spent is not None]
    read = spent[0]["prompt_tokens"] if spent else 0
    return _build_usage(read, sum(usage["completion_tokens"] for usage in spent))


def _build_usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


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
    clock: RequestTiming | None = request.scope.get(TIMING_KEY)

    def listen(is_stopped: IsStopped) -> Iterator[StreamItem]:
        """Collect items on the worker thread, since counting tokens may be slow."""
        for index, items in enumerate(work(is_stopped)):
            for item in items:
                collectors[index].add(item)
                yield index, item
            if is_stopped():
                return
            begun = time.perf_counter()
            collectors[index].finish()
            if make_mark is not None:
                collectors[index].mark = make_mark(collectors[index])
                yield index, collectors[index].mark
            if clock is not None:  # this is the server's own work, not the engine's
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
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()
