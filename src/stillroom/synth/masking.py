"""Masking a record: personal values out of its messages and every field that says them.

The words of the evidence are masked as the messages are, so that they still agree; their offsets
count in the document as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from stillroom.records import Link, Message, Record
from stillroom.text.personal import PersonalKind, find_personal
from stillroom.text.pseudonyms import Pseudonyms

__all__ = ["mask_record", "said_in"]

_KEPT = frozenset(
    str.split("passage_id document_id split id persona_id related_to rejected_by source")
)
"""Fields that name things of ours, and are never masked."""


def said_in(record: Record) -> Iterator[str]:
    """Yield every text of a record: its messages, then all that its fields say."""
    for message in record.messages:
        yield message.content
    for name, value in record.fields.items():
        yield from _said(name, value)


def mask_record(
    record: Record, kinds: Collection[PersonalKind], pseudonyms: Pseudonyms
) -> tuple[Record, dict[str, int]]:
    """Return the record with pseudonyms, and how many of each kind its messages and fields held.

    A record with nothing to mask comes back as it is.
    """
    counts: Counter[str] = Counter()

    def mask(text: str) -> str:
        found = [one for one in find_personal(text) if one.kind in kinds]
        counts.update(one.kind for one in found)
        return pseudonyms.mask(text, found) if found else text

    messages = tuple(Message(one.role, mask(one.content)) for one in record.messages)
    fields = {name: _mask(name, value, mask) for name, value in record.fields.items()}
    if not counts:
        return record, {}
    link = Link("synth.filters.personal", "", (record.id,))
    changed = replace(record, messages=messages, fields=fields, origin=record.origin.then(link))
    return changed, dict(sorted(counts.items()))


def _said(name: str, value: Any) -> Iterator[str]:
    if name in _KEPT:
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _said(str(key), part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _said(name, part)


def _mask(name: str, value: Any, mask: Any) -> Any:
    if name in _KEPT:
        return value
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {key: _mask(str(key), part, mask) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(name, part, mask) for part in value]
    return value
