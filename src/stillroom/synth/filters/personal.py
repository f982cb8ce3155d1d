"""Personal: reject or mask personal data (PII) such as addresses, numbers and keys.

Own method, by pattern and check digit (``text.safety``). ``action: mask`` replaces each match
with a pseudonym instead of dropping the record, in the messages and in every field: equal values
get equal pseudonyms, and no pseudonym is a valid phone number, account or address. Names and postal
addresses are not detected: patterns cannot recognize them.

The evidence is masked like the messages, so that they still agree; its offsets refer to the
original document.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import DISTINCT
from stillroom.recipes.settings import Secret
from stillroom.records import Link, Message, Record
from stillroom.synth.interfaces import BoundFilter, Filter, FilterContext, FilterResult
from stillroom.text.safety import PiiKind, Pseudonymizer, find_pii

__all__ = ["Personal", "iter_text_fields", "mask_record"]


class Personal(Filter):
    """Drop or mask records with data that identify or expose a person."""

    paper: ClassVar[str] = ""
    accepts_passages: ClassVar[bool] = True

    kinds: Annotated[tuple[PiiKind, ...], DISTINCT] = Field(
        ("email", "phone", "card", "iban", "ssn", "ip", "secret"),
        min_length=1,
        description="kinds of data to detect",
    )
    action: Literal["drop", "mask"] = Field("drop", description="drop the record, or mask the data")
    style: Literal["tag", "surrogate"] = Field(
        "tag",
        description="style of a mask: [email-3f2a91], or an unassigned value of the same form",
    )
    key: Secret | None = Field(
        None,
        description="secret key of the pseudonyms; without one they are derived from the seed, "
        "and anyone with the recipe can test a guess",
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        return self._judge(record, Pseudonymizer("", self.style))

    @override
    def start(self, context: FilterContext) -> BoundFilter:
        secret = self.key.reveal() if self.key is not None else f"seed {context.seed}"
        pseudonyms = Pseudonymizer(secret, self.style)
        return BoundFilter(lambda record: self._judge(record, pseudonyms))

    def _judge(self, record: Record, pseudonyms: Pseudonymizer) -> FilterResult:
        if self.action == "mask":
            changed, counts = mask_record(record, self.kinds, pseudonyms)
            total = float(sum(counts.values()))
            if counts:
                return FilterResult(True, score=total, details={"masked": counts}, changed=changed)
            return FilterResult(True, score=0.0)
        for text in dict.fromkeys(iter_text_fields(record)):  # a rejected answer is exported too
            matches = [match for match in find_pii(text) if match.kind in self.kinds]
            if matches:
                return FilterResult(
                    False, f"personal data: {matches[0].kind}", float(len(matches)), limit=0.0
                )
        return FilterResult(True, score=0.0)


_ID_FIELDS = frozenset(
    str.split("passage_id document_id split id persona_id related_to rejected_by source")
)
_ID = re.compile(r"[a-z]{3}-[0-9a-f]{20}|[0-9a-f]{8,}|endpoint:\S+")
"""Ids of contents, digests, numbers of rows and models: in the fields of ids they are not masked,
though some of their digits may look like a card's or an address's.
"""


def iter_text_fields(record: Record) -> Iterator[str]:
    """Yield every text of a record: its messages, then the values of its fields."""
    for message in record.messages:
        yield message.content
    for name, value in record.fields.items():
        yield from _iter_texts(name, value)


def mask_record(
    record: Record, kinds: Collection[PiiKind], pseudonyms: Pseudonymizer
) -> tuple[Record, dict[str, int]]:
    """Return the masked record, and the number of matches of each kind in messages and fields.

    A record with nothing to mask is returned unchanged.
    """
    counts: Counter[str] = Counter()

    def mask(text: str) -> str:
        matches = [match for match in find_pii(text) if match.kind in kinds]
        counts.update(match.kind for match in matches)
        return pseudonyms.mask(text, matches) if matches else text

    messages = tuple(Message(message.role, mask(message.content)) for message in record.messages)
    fields = {name: _mask_value(name, value, mask) for name, value in record.fields.items()}
    if not counts:
        return record, {}
    link = Link("synth.filters.personal", "", (record.id,))
    changed = replace(record, messages=messages, fields=fields, origin=record.origin.then(link))
    return changed, dict(sorted(counts.items()))


def _is_id(name: str, value: str) -> bool:
    return name in _ID_FIELDS and _ID.fullmatch(value) is not None


def _iter_texts(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if not _is_id(name, value):
            yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _iter_texts(str(key), part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _iter_texts(name, part)


def _mask_value(name: str, value: Any, mask: Any) -> Any:
    if isinstance(value, str):
        return value if _is_id(name, value) else mask(value)
    if isinstance(value, Mapping):
        return {key: _mask_value(str(key), part, mask) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_mask_value(name, part, mask) for part in value]
    return value
