"""Content credentials of documents: read before anything is stripped, then taken out of the text.

They are looked for in the file's own text, in the text that its parser found (an answer pasted
into an office file), and in the strings of JSON. Passages hold the text without them; anchors lead
to the file's bytes as before, since the file keeps them.

Source: C2PA Technical Specification 2.4, annexes A.7 to A.9.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from stillroom.records import Anchor, Document
from stillroom.records.text_credentials import (
    CREDENTIAL_MARKS,
    TextCredential,
    add_credentials,
    find_spans,
    has_credential,
    read_credentials,
    remove_marks,
)
from stillroom.text.documents.builder import require_text

__all__ = ["take_credentials"]

_MARKS = tuple(mark.encode() for mark in CREDENTIAL_MARKS)
_STATES = ("valid", "partial", "unverified", "changed", "invalid", "damaged")  # best first


def take_credentials(document: Document, data: bytes) -> Document:
    """Return a document without the characters of its credentials, and with what they say.

    Its origin has a link for each credential; ``credentials`` in its metadata describes them, and
    ``notices`` has a line for each.

    Raises:
        DataError: If the document holds nothing but credentials.
    """
    if not has_credential(document.text) and not any(mark in data for mark in _MARKS):
        return document
    found: dict[tuple[object, ...], TextCredential] = {}
    for text in _list_texts(document, _decode(data)):
        for one in read_credentials(text):  # a manifest's name is the signer's choice
            name = (one.manifest or one.state, one.says_synthetic, one.model, one.source_type)
            known = found.setdefault(name, one)
            if _STATES.index(one.state) < _STATES.index(known.state):
                found[name] = one
    if not found:
        return document
    credentials = tuple(found.values())
    notices = [*document.metadata.get("notices", ()), *map(str, credentials)]
    described = [one.to_json() for one in credentials]
    document = _cut_spans(document, find_spans(document.text))
    return require_text(
        replace(
            document,
            title=remove_marks(document.title),
            origin=add_credentials(document.origin, credentials),
            metadata={**document.metadata, "credentials": described, "notices": notices},
        ),
        "a text besides its content credential",
    )


def _decode(data: bytes) -> str:
    """Return a file's text where credentials count its bytes as they are; else an empty text."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _list_texts(document: Document, raw: str) -> Iterator[str]:
    yield raw
    if document.text != raw:
        yield document.text
    if document.media_type == "application/json":
        for line in [raw, *raw.splitlines()]:
            if has_credential(line) or "\\ufe" in line.lower():
                yield from _list_strings(line)


def _list_strings(line: str) -> Iterator[str]:
    """Yield the strings of JSON that may carry credentials; nothing for what is not JSON."""
    try:
        waiting = [json.loads(line)]
    except (ValueError, RecursionError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and has_credential(value):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _cut_spans(document: Document, spans: Sequence[tuple[int, int]]) -> Document:
    """Return a document without ranges of its text; what stays keeps its bytes in the file."""
    if not spans:
        return document
    ends = [0, *(end for _, end in spans)]
    kept = list(zip(ends, [*(start for start, _ in spans), len(document.text)], strict=True))
    starts = [0, *accumulate(end - start for start, end in kept[:-1])]
    anchors: list[Anchor] = []
    for (start, end), new in zip(kept, starts, strict=True):
        index = bisect.bisect_right(document.anchors, start, key=lambda anchor: anchor.end)
        for anchor in itertools.islice(document.anchors, index, None):
            if anchor.start >= end:
                break
            first, last = max(anchor.start, start), min(anchor.end, end)
            place = document.locate(first, last)
            moved = replace(anchor, start=new + first - start, end=new + last - start)
            anchors.append(replace(moved, byte_start=place.byte_start, byte_end=place.byte_end))

    def move(position: int) -> int:
        index = bisect.bisect_right(ends, position) - 1
        return starts[index] + min(position, kept[index][1]) - kept[index][0]

    return replace(
        document,
        text="".join(document.text[start:end] for start, end in kept),
        anchors=tuple(anchors),
        headings=tuple(
            replace(one, start=move(one.start), title=remove_marks(one.title))
            for one in document.headings
        ),
    )
