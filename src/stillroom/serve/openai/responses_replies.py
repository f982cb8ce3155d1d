"""Reply items and stream events of ``/v1/responses``.

Items are built by the same code whether they are streamed or sent whole, so both have the same
content. Citations are annotations of the text, as in OpenAI's API, and a list of their own in the
message, as in a chat.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.errors import BackendError
from stillroom.models.endpoints.transport import get_first_choice
from stillroom.serve.errors import ApiError
from stillroom.serve.openai.collectors import (
    GenerationUsage,
    OutputItem,
    ProxyCollector,
    ResponseCollector,
)
from stillroom.serve.openai.replies import describe_sources, locate_citations
from stillroom.serve.openai.stream import encode_json

__all__ = ["ResponsesReply"]

_StreamEvent = tuple[str, dict[str, Any]]
"""Event without its sequence number: type without the common prefix, and fields."""
_INCOMPLETE_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ERROR_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
"""Error codes of OpenAI for a failed response; all other failures are server errors."""


class ResponsesReply:
    """Reply with one text: whole, or event by event."""

    def __init__(self, echo: Mapping[str, Any]) -> None:
        """Create the reply to a request.

        ``echo`` has the fields of the request that the reply repeats.
        """
        self._echo, self.answer_id, self._created = echo, _new_item_id("resp"), int(time.time())
        self._output = _OutputItems()
        self._number = 0

    def render(self, collectors: Sequence[ResponseCollector]) -> dict[str, Any]:
        """Return the reply as one object.

        Raises:
            BackendError: If another server failed, or sent no answer.
        """
        (collector,) = collectors
        answer = collector.answer if isinstance(collector, ProxyCollector) else collector.text
        for _ in (*self._output.add(answer), *self._close(collector)):
            pass
        return self._state(*_find_outcome(collector))

    def start_events(self, collectors: Sequence[ResponseCollector]) -> Iterator[bytes]:
        """Yield the opening events of a stream."""
        for kind in ("created", "in_progress"):
            yield self._event(kind, {"response": self._state("in_progress")})

    def item_events(
        self, index: int, item: OutputItem | None, collector: ResponseCollector
    ) -> Iterator[bytes]:
        """Yield the events of a piece of text, or of its end.

        Raises:
            BackendError: If another server failed, or sent an invalid answer.
        """
        events: Iterator[_StreamEvent] = iter(())
        if isinstance(item, str | dict):
            events = self._output.add(item)
        elif item is None:
            events = self._close(collector)
        for event in events:
            yield self._event(*event)

    def end_events(self, collectors: Sequence[ResponseCollector]) -> Iterator[bytes]:
        """Yield the event that holds the whole reply."""
        status, spent = _find_outcome(collectors[0])
        yield self._event(status, {"response": self._state(status, spent)})

    def error_events(self, refusal: ApiError) -> Iterator[bytes]:
        """Yield the event that ends a failed stream, with the items so far."""
        self._output.break_off()
        error = {
            "code": _ERROR_CODES.get(refusal.status, "server_error"),
            "message": refusal.message,
            "type": refusal.to_json()["error"]["type"],
            "param": refusal.param,
            "reason": refusal.code,
        }
        yield self._event("failed", {"response": {**self._state("failed"), "error": error}})

    def _close(self, collector: ResponseCollector) -> Iterator[_StreamEvent]:
        """Close the open item at the end of a text."""
        if isinstance(collector, ProxyCollector) and (
            not collector.has_choice or _find_outcome(collector)[0] == "broken"
        ):
            raise BackendError(
                "the upstream server sent no answer, or failed",
                code="backend.broken",
                expected="choices, and finish_reason stop",
                next="check the log of that server, and retry",
            )
        marks = locate_citations(collector.text, collector.citations or (), collector.details)
        yield from self._output.close(
            _find_outcome(collector)[0], marks, describe_sources(collector)
        )

    def _state(self, status: str, spent: GenerationUsage | None = None) -> dict[str, Any]:
        """Return the current state of the reply."""
        why = _INCOMPLETE_REASONS.get(spent.finish_reason) if spent else None
        return {
            "id": self.answer_id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": why} if why else None,
            "output": self._output.items,
            "usage": _format_usage(spent) if spent and spent.is_reported else None,
            "user": None,
            **self._echo,
        }

    def _event(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        """Return an event with its sequence number."""
        kind = f"response.{kind}"
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + encode_json(data) + b"\n\n"


class _OutputItems:
    """Output items of an answer, and their events; one item is open at a time.

    Events hold the items themselves: an event must be written before the next one is requested.
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._part: dict[str, Any] | None = None
        self._pieces: list[str] = []
        self._is_open = False
        self._place: tuple[int, str] | None = None

    def add(self, piece: str | Mapping[str, Any]) -> Iterator[_StreamEvent]:
        """Add a piece of text, or an answer or a chunk of another server."""
        if isinstance(piece, str):
            yield from self._say(piece, "output_text", "text")
            return
        choice = get_first_choice(piece)
        delta = choice.get("delta") or choice.get("message")
        delta = delta if isinstance(delta, dict) else {}
        content = delta.get("content")
        if not isinstance(content, str | list | None):
            raise _upstream_error(f"content that is {type(content).__name__}", "text")
        if text := _join_text(content):
            yield from self._say(text, "output_text", "text")
        if text := _join_text(delta.get("refusal")):
            yield from self._say(text, "refusal", "refusal")
        calls = delta.get("tool_calls")
        for index, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                yield from self._call(_FunctionCallDelta.read(call, index))

    def close(
        self, status: str, marks: Sequence[Mapping[str, Any]], more: Mapping[str, Any]
    ) -> Iterator[_StreamEvent]:
        """Close the last item; an answer without items gets an empty message."""
        if not self.items:
            yield from self._say("", "output_text", "text")
        yield from self._close_item(status, marks, more)

    def break_off(self) -> None:
        """Leave the open item incomplete."""
        if self._is_open:
            self._settle()
            self.items[-1]["status"] = "incomplete"
            self._is_open = False

    @property
    def _item(self) -> dict[str, Any]:
        return self.items[-1]

    @property
    def _where(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self.items) - 1}

    @property
    def _where_part(self) -> dict[str, Any]:
        return {**self._where, "content_index": len(self._item["content"]) - 1}

    def _open(self, item: dict[str, Any]) -> Iterator[_StreamEvent]:
        yield from self._close_item("completed")
        self.items.append(item)
        self._is_open = True
        yield "output_item.added", {"output_index": len(self.items) - 1, "item": item}

    def _say(self, text: str, kind: str, key: str) -> Iterator[_StreamEvent]:
        """Add a piece of a message: of its text, or of a refusal."""
        if not self._is_open or self._item["type"] != "message":
            head = {"id": _new_item_id("msg"), "type": "message", "status": "in_progress"}
            yield from self._open({**head, "role": "assistant", "content": []})
        if self._part is None or self._part["type"] != kind:
            yield from self._close_part()
            part: dict[str, Any] = {"type": kind, key: ""}
            if kind == "output_text":
                part |= {"annotations": [], "logprobs": []}
            self._part = part
            self._item["content"].append(part)
            yield "content_part.added", {**self._where_part, "part": part}
        if text:
            self._pieces.append(text)
            more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
            yield f"{kind}.delta", {**self._where_part, "delta": text, **more}

    def _call(self, call: _FunctionCallDelta) -> Iterator[_StreamEvent]:
        """Add a piece of a function call; another index or id starts another call."""
        is_open = self._is_open and self._item["type"] == "function_call"
        if not is_open or self._place is None or not call.belongs_to(*self._place):
            if not call.name:
                if not call.arguments:
                    return
                raise _upstream_error(
                    "arguments without a function name", "the function's name first"
                )
            known = {item.get("call_id") for item in self.items}
            call_id = call.id if call.id and call.id not in known else _new_item_id("call")
            head = {"id": _new_item_id("fc"), "type": "function_call", "status": "in_progress"}
            yield from self._open({**head, "call_id": call_id, "name": call.name, "arguments": ""})
            self._place = (call.at, call.id)
        if call.arguments:
            self._pieces.append(call.arguments)
            yield "function_call_arguments.delta", {**self._where, "delta": call.arguments}

    def _settle(self) -> None:
        """Set the text of the open item from its pieces."""
        text, self._pieces = "".join(self._pieces), []
        if self._item["type"] == "function_call":
            self._item["arguments"] = text
        elif self._part is not None:
            self._part["text" if "text" in self._part else "refusal"] = text
            self._part = None

    def _close_part(self, marks: Sequence[Mapping[str, Any]] = ()) -> Iterator[_StreamEvent]:
        part = self._part
        if part is None:
            return
        self._settle()
        for index, mark in enumerate(marks if part["type"] == "output_text" else ()):
            part["annotations"].append(dict(mark))
            position = {**self._where_part, "annotation_index": index}
            yield "output_text.annotation.added", {**position, "annotation": dict(mark)}
        if part["type"] == "output_text":
            yield "output_text.done", {**self._where_part, "text": part["text"], "logprobs": []}
        else:
            yield "refusal.done", {**self._where_part, "refusal": part["refusal"]}
        yield "content_part.done", {**self._where_part, "part": part}

    def _close_item(
        self,
        status: str,
        marks: Sequence[Mapping[str, Any]] = (),
        more: Mapping[str, Any] | None = None,
    ) -> Iterator[_StreamEvent]:
        if not self._is_open:
            return
        item = self._item
        if item["type"] == "message":
            yield from self._close_part(marks)
            item.update(more or {})
        else:
            self._settle()
            yield (
                "function_call_arguments.done",
                {**self._where, "name": item["name"], "arguments": item["arguments"]},
            )
        item["status"] = status
        self._is_open = False
        yield "output_item.done", {"output_index": len(self.items) - 1, "item": item}


@dataclass(frozen=True, slots=True)
class _FunctionCallDelta:
    """Piece of a function call, as sent by another server."""

    at: int
    id: str
    name: str
    arguments: str

    @classmethod
    def read(cls, call: Mapping[str, Any], position: int) -> _FunctionCallDelta:
        """Parse leniently; some servers send no index, or no id."""
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        index, arguments = call.get("index"), function.get("arguments")
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments)
        return cls(
            index if isinstance(index, int) else position,
            _join_text(call.get("id")),
            _join_text(function.get("name")),
            _join_text(arguments),
        )

    def belongs_to(self, index: int, id: str) -> bool:
        """Whether it continues the call with an index and an id."""
        return self.at == index and (not self.id or not id or self.id == id)


def _upstream_error(received: str, expected: str) -> BackendError:
    """Return the error for an invalid answer of another server."""
    return BackendError(
        f"the upstream server sent {received}",
        code="backend.answer",
        expected=expected,
        next="check the log of that server, and retry",
    )


def _join_text(value: object) -> str:
    """Return text given as a string or in parts; empty for anything else."""
    if isinstance(value, list):
        return "".join(_join_text(part.get("text")) for part in value if isinstance(part, dict))
    return value if isinstance(value, str) else ""


def _new_item_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:24]}"


def _find_outcome(collector: ResponseCollector) -> tuple[str, GenerationUsage | None]:
    """Return the status and the reason for an incomplete response."""
    reason = collector.spent.finish_reason if collector.spent else "broken"
    status = (
        "incomplete"
        if reason in _INCOMPLETE_REASONS
        else "broken"
        if reason == "broken"
        else "completed"
    )
    return status, collector.spent


def _format_usage(spent: GenerationUsage) -> dict[str, Any]:
    used = spent.usage
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": spent.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": spent.reasoning_tokens},
        "total_tokens": used["total_tokens"],
    }
