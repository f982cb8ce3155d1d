"""Personal: reject or mask personal data such as addresses, numbers and keys.

Own method, by form and check digit (``text.personal``). ``action: mask`` puts a pseudonym in place
of each find instead of dropping the record, in the messages and in every field: the same value is
the same pseudonym throughout, and no pseudonym can be dialed, paid to or mailed. Names and postal
addresses are not looked for: they cannot be told by their form.

The words of the evidence are masked as the messages are, so that they still agree; their offsets
count in the document as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.recipes.settings import Secret
from stillroom.records import Link, Message, Record
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, FilterState
from stillroom.text.safety import PiiKind, Pseudonymizer, find_pii

__all__ = [
    "Personal",
    "iter_text_fields",
    "mask_record",
]


class Personal(Filter):
    """Drops records that hold what identifies or exposes a person, or masks it."""

    paper: ClassVar[str] = ""
    judges_passages: ClassVar[bool] = True

    kinds: tuple[PiiKind, ...] = Field(
        ("email", "phone", "card", "iban", "ssn", "ip", "secret"),
        min_length=1,
        description="what is looked for",
    )
    action: Literal["drop", "mask"] = Field("drop", description="what becomes of the record")
    style: Literal["tag", "surrogate"] = Field(
        "tag",
        description="of a mask: [email-3f2a91], or a value of the same form that belongs to nobody",
    )
    key: Secret | None = Field(
        None,
        description="secret that pseudonyms are made with; without one they follow from the seed, "
        "and who knows the recipe can test a guess",
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        return self._judge(record, Pseudonymizer("", self.style))

    @override
    def begin(self, context: FilterContext) -> FilterState:
        secret = self.key.reveal() if self.key is not None else f"seed {context.seed}"
        return _PersonalState(self, Pseudonymizer(secret, self.style))

    def _judge(self, record: Record, pseudonyms: Pseudonymizer) -> FilterResult:
        if self.action == "mask":
            changed, counts = mask_record(record, self.kinds, pseudonyms)
            total = float(sum(counts.values()))
            if counts:
                return FilterResult(True, score=total, told={"masked": counts}, changed=changed)
            return FilterResult(True, score=0.0)
        for text in dict.fromkeys(iter_text_fields(record)):  # a rejected answer is exported too
            found = [one for one in find_pii(text) if one.kind in self.kinds]
            if found:
                return FilterResult(
                    False, f"personal data: {found[0].kind}", float(len(found)), limit=0.0
                )
        return FilterResult(True, score=0.0)


class _PersonalState:
    def __init__(self, chosen: Personal, pseudonyms: Pseudonymizer) -> None:
        self._chosen, self._pseudonyms = chosen, pseudonyms

    def judge(self, record: Record) -> FilterResult:
        return self._chosen._judge(record, self._pseudonyms)

    def admit(self, record: Record) -> None:
        """Remember nothing: a pseudonym follows from the value alone."""


_UNMASKED_FIELDS = frozenset(
    str.split("passage_id document_id split id persona_id related_to rejected_by source")
)
"""Fields that name things of ours, and are never masked."""


def iter_text_fields(record: Record) -> Iterator[str]:
    """Yield every text of a record: its messages, then all that its fields say."""
    for message in record.messages:
        yield message.content
    for name, value in record.fields.items():
        yield from _iter_texts(name, value)


def mask_record(
    record: Record, kinds: Collection[PiiKind], pseudonyms: Pseudonymizer
) -> tuple[Record, dict[str, int]]:
    """Return the record with pseudonyms, and how many of each kind its messages and fields held.

    A record with nothing to mask comes back as it is.
    """
    counts: Counter[str] = Counter()

    def mask(text: str) -> str:
        found = [one for one in find_pii(text) if one.kind in kinds]
        counts.update(one.kind for one in found)
        return pseudonyms.mask(text, found) if found else text

    messages = tuple(Message(one.role, mask(one.content)) for one in record.messages)
    fields = {name: _mask_value(name, value, mask) for name, value in record.fields.items()}
    if not counts:
        return record, {}
    link = Link("synth.filters.personal", "", (record.id,))
    changed = replace(record, messages=messages, fields=fields, origin=record.origin.then(link))
    return changed, dict(sorted(counts.items()))


def _iter_texts(name: str, value: Any) -> Iterator[str]:
    if name in _UNMASKED_FIELDS:
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _iter_texts(str(key), part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _iter_texts(name, part)


def _mask_value(name: str, value: Any, mask: Any) -> Any:
    if name in _UNMASKED_FIELDS:
        return value
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {key: _mask_value(str(key), part, mask) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_mask_value(name, part, mask) for part in value]
    return value
