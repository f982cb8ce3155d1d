"""What clients get: OpenAI's objects, with citations as annotations and as a list of their own.

An annotation marks where ``[1]`` stands in the text; ``citations`` says what stands behind it:
file, byte range, pages, passage and its words.
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np

from stillroom.models.protocols import CanvasStep, Vectors
from stillroom.records import Citation

__all__ = [
    "DONE",
    "Reply",
    "describe_answer",
    "describe_citations",
    "embedding_reply",
    "event",
    "locate_marks",
]

DONE = b"data: [DONE]\n\n"
_TOLD = (
    "answering",
    "trace",
    "abstained",
    "refusal",
    "nearest",
    "statements",
    "dropped_statements",
    "sources",
    "origins",
    "notices",
    "cached",
    "index",
)
_MARK = re.compile(r"\[(\d{1,3})\]")


def event(value: object) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def describe_citations(
    citations: Sequence[Citation], details: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return citations as plain values, numbers as in the text.

    Args:
        citations: Of one answer.
        details: The answer's; where they name its sources, each citation says who made its
            passage, under which license, and what to look twice at.
    """
    sources = {one["number"]: one for one in (details or {}).get("sources", ())}
    return [
        {
            "number": citation.number,
            "passage_id": citation.passage_id,
            "path": citation.location.path,
            "digest": citation.location.digest,
            "byte_start": citation.location.byte_start,
            "byte_end": citation.location.byte_end,
            "is_exact": citation.location.is_exact,
            "pages": list(citation.location.pages),
            "label": citation.location.label,
            "text": citation.text,
            **{
                key: sources[citation.number][key]
                for key in ("origin", "checked", "license", "flags")
                if key in sources.get(citation.number, {})
            },
        }
        for citation in citations
    ]


def describe_answer(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an answer's details say of its making, for whoever wants to look closer.

    None of the documents' text is in it but sentences that were left out of the answer.
    """
    return {key: details[key] for key in _TOLD if key in details}


def locate_marks(text: str, citations: Sequence[Citation]) -> list[dict[str, Any]]:
    """Return OpenAI's annotations: one for every mark in the text that a citation stands behind."""
    known = {citation.number: citation for citation in citations}
    found = []
    for mark in _MARK.finditer(text):
        citation = known.get(int(mark[1]))
        if citation is None:
            continue
        place = citation.location
        part = (
            f"page={place.pages[0]}"
            if place.pages
            else f"bytes={place.byte_start}-{place.byte_end}"
        )
        found.append(
            {
                "type": "url_citation",
                "url_citation": {
                    "start_index": mark.start(),
                    "end_index": mark.end(),
                    "title": place.path,
                    "url": f"{quote(place.path)}#{part}",
                    "passage_id": citation.passage_id,
                    "byte_start": place.byte_start,
                    "byte_end": place.byte_end,
                    "pages": list(place.pages),
                },
            }
        )
    return found


@dataclass(frozen=True)
class Reply:
    """The objects of one reply: whole, or chunk by chunk.

    Answers from documents read the last message alone, unless their way makes it stand alone
    first: ``turns_not_read`` counts the others.
    """

    model: str
    is_chat: bool
    turns_not_read: int = 0
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:24])
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(
        self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int]
    ) -> dict[str, Any]:
        """Return the reply in one object."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": list(choices), "usage": dict(usage)}

    def choice(
        self,
        at: int,
        text: str,
        finish_reason: str,
        citations: Sequence[Citation] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return one of the texts of a whole reply."""
        choice: dict[str, Any] = {"index": at, "finish_reason": finish_reason, "logprobs": None}
        if self.is_chat:
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if citations is not None:
                message.update(self._cite(text, citations, details or {}))
            choice["message"] = message
        else:
            choice["text"] = text
        return choice

    def first(self, at: int) -> bytes | None:
        """Return the chunk that opens a text of a chat's stream."""
        return self.chunk(at, {"role": "assistant", "content": ""}) if self.is_chat else None

    def piece(self, at: int, text: str) -> bytes:
        """Return a chunk of text."""
        chunk = self.chunk
        return chunk(at, {"content": text}) if self.is_chat else chunk(at, {}, text=text)

    def canvas(self, step: CanvasStep) -> bytes:
        """Return a chunk without text that shows the whole of it as it stands: an extension."""
        shown = {
            "step": step.step,
            "readings": step.readings,
            "pieces": list(step.pieces),
            "written": list(step.written),
            "changed": list(step.changed),
        }
        return event({**self._head(self._chunk_kind), "choices": [], "canvas": shown})

    def cited(
        self,
        at: int,
        text: str,
        citations: Sequence[Citation],
        details: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Return the chunk of a text's citations, which comes before its last."""
        return self.chunk(at, self._cite(text, citations, details or {}))

    def last(self, at: int, finish_reason: str) -> bytes:
        """Return the chunk that says why a text ended."""
        return self.chunk(at, {}, finish_reason=finish_reason)

    def usage(self, usage: Mapping[str, int]) -> bytes:
        """Return the chunk of usage, after all others."""
        return event({**self._head(self._chunk_kind), "choices": [], "usage": usage})

    def chunk(
        self, at: int, delta: dict[str, Any], *, text: str = "", finish_reason: str | None = None
    ) -> bytes:
        """Return one chunk of a text as an event."""
        choice: dict[str, Any] = {"index": at, "finish_reason": finish_reason, "logprobs": None}
        choice.update({"delta": delta} if self.is_chat else {"text": text})
        return event({**self._head(self._chunk_kind), "choices": [choice]})

    def _cite(
        self, text: str, citations: Sequence[Citation], details: Mapping[str, Any]
    ) -> dict[str, Any]:
        cited: dict[str, Any] = {
            "annotations": locate_marks(text, citations),
            "citations": describe_citations(citations, details),
        }
        if details:
            cited["answer"] = describe_answer(details)
        is_read = any(one["step"] == "stand_alone" for one in details.get("trace", ()))
        if self.turns_not_read and not is_read:
            cited["turns_not_read"] = self.turns_not_read
        return cited

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }


def embedding_reply(vectors: Vectors, model: str, tokens: int, encoding: str) -> dict[str, Any]:
    """Return vectors as OpenAI's list, as numbers or as base64 of little-endian float32."""
    rows = np.asarray(vectors, dtype="<f4")
    values = [
        base64.b64encode(row.tobytes()).decode() if encoding == "base64" else row.tolist()
        for row in rows
    ]
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": at, "embedding": value}
            for at, value in enumerate(values)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
