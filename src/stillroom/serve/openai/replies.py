"""JSON of chat and completions: whole replies, and SSE ``chat.completion.chunk`` deltas.

Citations are annotations. An annotation marks the position of ``[1]`` in the text; ``citations``
gives its target: file, byte range, pages, passage and its text.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote as quote_address

from stillroom.models.interfaces import DenoisingStep
from stillroom.provenance.evidence import describe_citations
from stillroom.records import Citation, list_cited_quotes
from stillroom.serve.errors import ApiError
from stillroom.serve.openai.collectors import (
    OutputItem,
    ProxyCollector,
    ResponseCollector,
    sum_usage,
)
from stillroom.serve.openai.stream import encode_json

__all__ = [
    "ChatReply",
    "ProxiedReply",
    "describe_answer",
    "describe_sources",
    "locate_citations",
]

_DONE_EVENT = b"data: [DONE]\n\n"

_DETAIL_FIELDS = (
    "answering",
    "answered_by",
    "trace",
    "abstained",
    "refusal",
    "refusal_note",
    "nearest",
    "quotes",
    "judged",
    "statements",
    "dropped_statements",
    "sources",
    "origins",
    "notices",
    "cached",
    "index",
)

_CITATION_MARK = re.compile(r"\[(\d{1,3})\]")


def _format_event(value: object) -> bytes:
    """Return one server-sent event."""
    return b"data: " + encode_json(value) + b"\n\n"


def describe_answer(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the details of how an answer was produced.

    Contains no text of the documents except quotes, and sentences left out of the answer; and no
    address of an endpoint.
    """
    shown = {key: details[key] for key in _DETAIL_FIELDS if key in details}
    if "answering" in details:
        shown.setdefault("quotes", [])
    if str(shown.get("answered_by", "")).startswith("endpoint:"):
        del shown["answered_by"]
    return shown


def describe_sources(collector: ResponseCollector) -> dict[str, Any]:
    """Return the document fields of a reply; empty for replies without documents.

    Answers from documents read the last message alone, unless the pipeline first rewrites it as a
    standalone question; quotes read a follow-up with the questions that it goes on from.
    ``turns_not_read`` counts the others.
    """
    if collector.citations is None:
        return {}
    details = collector.details
    cited: dict[str, Any] = {"citations": describe_citations(collector.citations, details)}
    if details:
        cited["answer"] = describe_answer(details)
    trace = details.get("trace", ())
    read = sum(len(step.get("antecedents", ())) for step in trace)
    unread = collector.turns_before - read
    if unread and not any(step["step"] == "stand_alone" for step in trace):
        cited["turns_not_read"] = unread
    return cited


def locate_citations(
    text: str, citations: Sequence[Citation], details: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return the positions of citation marks in a text; marks without a citation are skipped.

    The mark after a quote points to the quote's own bytes, and what looks like a mark within a
    quote is none. Cells of a row share the last one's mark, and so do the items of a list. A
    refusal has no source: its marks name the nearest passages.
    """
    details = details or {}
    if details.get("abstained"):
        return []
    known = {citation.number: citation for citation in citations}
    cited = list_cited_quotes(details.get("quotes", ()))
    titles = {source["number"]: source.get("title", "") for source in details.get("sources", ())}
    quoted = {quote["answer_start"] + len(quote["text"]) + 1: quote for quote in cited}
    marks = []
    for mark in _CITATION_MARK.finditer(text):
        citation, place = known.get(int(mark[1])), quoted.get(mark.start())
        if citation is None or (quoted and place is None):
            continue
        location = citation.location
        if place:
            location = replace(
                location,
                byte_start=place["byte_start"],
                byte_end=place["byte_end"],
                pages=tuple(place["pages"]),
            )
        part = (
            f"page={location.pages[0]}"
            if location.pages
            else f"bytes={location.byte_start}-{location.byte_end}"
        )
        marks.append(
            {
                "type": "url_citation",
                "start_index": mark.start(),
                "end_index": mark.end(),
                "title": _choose_title(titles.get(citation.number, ""), location.path),
                "url": f"{quote_address(location.path)}#{part}",
                "passage_id": citation.passage_id,
                "byte_start": location.byte_start,
                "byte_end": location.byte_end,
                "pages": list(location.pages),
            }
        )
    return marks


@dataclass(frozen=True)
class ChatReply:
    """Reply to a chat or a text completion: whole, or chunk by chunk."""

    model: str
    is_chat: bool
    wants_usage: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:24])
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def answer_id(self) -> str:
        """Id of the reply."""
        return f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.id}"

    def render(self, collectors: Sequence[ResponseCollector]) -> dict[str, Any]:
        """Return the reply as one object."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        choices = [self._choice(index, collector) for index, collector in enumerate(collectors)]
        return {**self._head(kind), "choices": choices, "usage": sum_usage(collectors)}

    def start_events(self, collectors: Sequence[ResponseCollector]) -> Iterator[bytes]:
        """Yield the opening chunk of each text of a chat."""
        if self.is_chat:
            for index in range(len(collectors)):
                yield self._chunk(index, {"role": "assistant", "content": ""})

    def item_events(
        self, index: int, item: OutputItem | None, collector: ResponseCollector
    ) -> Iterator[bytes]:
        """Yield the chunks of a piece of text, of a denoising step, or of a text's end.

        Citations come after the text, before the chunk with the finish reason. A step is a chunk
        without text that holds the whole canvas: an extension.
        """
        if isinstance(item, str):
            delta = {"content": item}
            yield self._chunk(index, delta) if self.is_chat else self._chunk(index, {}, text=item)
        elif isinstance(item, DenoisingStep):
            shown = _describe_step(item)
            yield _format_event({**self._head(self._chunk_kind), "choices": [], "canvas": shown})
        elif item is None and collector.spent is not None:
            if cited := self._cite(collector):
                yield self._chunk(index, cited)
            yield self._chunk(index, {}, finish_reason=collector.spent.finish_reason)

    def end_events(self, collectors: Sequence[ResponseCollector]) -> Iterator[bytes]:
        """Yield the chunk of usage, if requested, and ``[DONE]``."""
        if self.wants_usage:
            usage = sum_usage(collectors)
            yield _format_event({**self._head(self._chunk_kind), "choices": [], "usage": usage})
        yield _DONE_EVENT

    def error_events(self, refusal: ApiError) -> Iterator[bytes]:
        """Yield the events that end a failed stream."""
        yield _format_event(refusal.to_json())

    def _choice(self, index: int, collector: ResponseCollector) -> dict[str, Any]:
        reason = collector.spent.finish_reason if collector.spent else None
        choice: dict[str, Any] = {"index": index, "finish_reason": reason, "logprobs": None}
        if not self.is_chat:
            return {**choice, "text": collector.text}
        message = {"role": "assistant", "content": collector.text, "refusal": None}
        return {**choice, "message": {**message, **self._cite(collector)}}

    def _chunk(
        self, index: int, delta: dict[str, Any], *, text: str = "", finish_reason: str | None = None
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason, "logprobs": None}
        choice.update({"delta": delta} if self.is_chat else {"text": text})
        return _format_event({**self._head(self._chunk_kind), "choices": [choice]})

    def _cite(self, collector: ResponseCollector) -> dict[str, Any]:
        if collector.citations is None:
            return {}
        marks = locate_citations(collector.text, collector.citations, collector.details)
        return {
            "annotations": _nest_annotations(marks),
            **describe_sources(collector),
        }

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
        }


@dataclass(frozen=True)
class ProxiedReply:
    """Reply of another server, under the local model name and otherwise unchanged."""

    model: str

    @property
    def answer_id(self) -> str:
        """Empty: the other server's id is not known beforehand, and no evidence is kept."""
        return ""

    def render(self, collectors: Sequence[ResponseCollector]) -> dict[str, Any]:
        """Return the reply as one object."""
        (collector,) = collectors
        answer = collector.answer if isinstance(collector, ProxyCollector) else {}
        return {**answer, "model": self.model}

    def start_events(self, collectors: Sequence[ResponseCollector]) -> Iterator[bytes]:
        """Yield nothing: the other server sends the opening chunk."""
        yield from ()

    def item_events(
        self, index: int, item: OutputItem | None, collector: ResponseCollector
    ) -> Iterator[bytes]:
        """Yield a chunk."""
        if isinstance(item, dict):
            yield _format_event({**item, "model": self.model})

    def end_events(self, collectors: Sequence[ResponseCollector]) -> Iterator[bytes]:
        """Yield ``[DONE]``."""
        yield _DONE_EVENT

    def error_events(self, refusal: ApiError) -> Iterator[bytes]:
        """Yield the events that end a failed stream."""
        yield _format_event(refusal.to_json())


def _choose_title(title: str, path: str) -> str:
    """Return a document's title; its path if a parser found none but the file's name."""
    return path if title in {"", PurePosixPath(path).stem} else title


def _describe_step(step: DenoisingStep) -> dict[str, Any]:
    return {
        "step": step.step,
        "readings": step.readings,
        "pieces": list(step.pieces),
        "written": list(step.written),
        "changed": list(step.changed),
    }


def _nest_annotations(marks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return annotations in the format of a chat message: the position in a nested object."""
    return [
        {
            "type": mark["type"],
            mark["type"]: {key: value for key, value in mark.items() if key != "type"},
        }
        for mark in marks
    ]
