"""Content credentials (C2PA) of documents: read first, then taken out of the text.

They are looked for in the file's own text, in the text that its parser found (an answer pasted
into an office file), in the strings of JSON, and in what a parser leaves out of the text: headers,
footers, properties, outputs of notebooks. Passages hold the text without them; anchors lead to the
file's bytes as before, since the file keeps them. Unsigned statements that the parser found, such
as IPTC's digital source type, count beside them.

Source: C2PA Technical Specification 2.4, annexes A.7 to A.9.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from stillroom.records import Anchor, Definition, Document, Link
from stillroom.records.text_credentials import (
    CREDENTIAL_MARKS,
    TextCredential,
    add_credentials,
    find_spans,
    has_credential,
    read_credentials,
    read_detached,
    remove_marks,
)
from stillroom.text.documents.builder import require_text
from stillroom.text.documents.statements import OriginStatement, repeats_title

__all__ = ["take_credentials"]

_MARKS = tuple(mark.encode() for mark in CREDENTIAL_MARKS)
_STATES = ("valid", "partial", "unverified", "changed", "invalid", "damaged")  # best first


def take_credentials(document: Document, data: bytes) -> Document:
    """Return a document without the characters of its credentials, and with what they say.

    Its origin has a link for each credential and each kind of unsigned statement; ``credentials``
    and ``origin_statements`` in its metadata describe them, and ``notices`` has a line for each.

    Raises:
        DataError: If the document holds nothing but credentials.
    """
    outside, statements, document = _take_marks(document)
    if not (
        outside
        or statements
        or has_credential(document.text)
        or any(mark in data for mark in _MARKS)
    ):
        return document
    found: dict[tuple[object, ...], TextCredential] = {}
    texts = (read_credentials(text) for text in _list_texts(document, _decode(data)))
    for one in itertools.chain(outside, *texts):  # a manifest's name is the signer's choice
        name = (one.manifest or one.state, one.says_synthetic, one.model, one.source_type)
        known = found.setdefault(name, one)
        if _STATES.index(one.state) < _STATES.index(known.state):
            found[name] = one
    if not found and not statements:
        return document
    credentials = tuple(found.values())
    notices = [*document.metadata.get("notices", ()), *map(str, (*credentials, *statements))]
    origin = add_credentials(document.origin, credentials)
    for convention, says_synthetic, model in dict.fromkeys(
        (one.convention, one.says_synthetic, one.model) for one in statements
    ):
        link = Link(f"statement.{convention}", model)
        origin = origin.then(link, kind="synthetic" if says_synthetic else None)
    described = {"credentials": [one.to_json() for one in credentials]} if credentials else {}
    document = _cut_spans(document, find_spans(document.text))
    return require_text(
        replace(
            document,
            title=remove_marks(document.title),
            origin=origin,
            metadata={**document.metadata, **described, "notices": notices},
        ),
        "a text besides its content credential",
    )


def _take_marks(
    document: Document,
) -> tuple[list[TextCredential], list[OriginStatement], Document]:
    """Return the credentials outside of a document's text, its statements, and it without both."""
    metadata = dict(document.metadata)
    outside = [one for text in metadata.pop("marked_texts", ()) for one in read_credentials(text)]
    outside += [read_detached(bytes.fromhex(one)) for one in metadata.pop("manifest_stores", ())]
    titles = {document.title, *(heading.title for heading in document.headings)}
    marks = metadata.pop("origin_statements", ())
    marks = [one for one in marks if not repeats_title(one["says"], titles)]
    if marks:
        metadata["origin_statements"] = marks
    return outside, [OriginStatement(**one) for one in marks], replace(document, metadata=metadata)


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
    if document.media_type.endswith("json"):
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
        definitions=tuple(
            Definition(move(one.start), move(one.end), move(one.stop))
            for one in document.definitions
        ),
    )
