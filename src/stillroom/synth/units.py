"""Units: the pieces of a generator's work, what each may draw by, and what came of it.

Knows no generator, no filter and no file.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stillroom.provenance import digest_json
from stillroom.records import Passage, Record
from stillroom.synth.items import (
    Item,
    SeedKind,
    Topic,
    document_of,
    kind_of,
    passage_of_record,
)

__all__ = ["Corpus", "Draft", "Failure", "Seed", "Split", "derive_seed"]

Split = Literal["train", "held_out"]
_SEED_BITS = 31


def derive_seed(*parts: object) -> int:
    """Return a number below 2**31 that follows from the parts alone."""
    return int(digest_json(parts)[:16], 16) % (1 << _SEED_BITS)


@dataclass(frozen=True, slots=True)
class Seed:
    """One unit of work: an item, on which side of the split it is, and which attempt this is.

    Whatever is drawn for it follows from ``seed`` (the recipe's), the item's id and the attempt:
    never from what was drawn before.
    """

    item: Item
    split: Split
    attempt: int = 0
    seed: int = 0

    @property
    def kind(self) -> SeedKind:
        """Which kind of item this is."""
        return kind_of(self.item)

    @property
    def passage(self) -> Passage:
        """The passage, or a record's text as one.

        Raises:
            TypeError: If the item has no text of a document; ``Generator.takes`` prevents it.
        """
        if isinstance(self.item, Passage):
            return self.item
        return passage_of_record(self.record)

    @property
    def record(self) -> Record:
        """The record.

        Raises:
            TypeError: If the item is none.
        """
        if not isinstance(self.item, Record):
            raise TypeError(f"{self.item.id} is not a record")
        return self.item

    @property
    def topic(self) -> Topic:
        """The topic.

        Raises:
            TypeError: If the item is none.
        """
        if not isinstance(self.item, Topic):
            raise TypeError(f"{self.item.id} is not a topic")
        return self.item

    @property
    def document_id(self) -> str:
        """The unit of the split that the item belongs to."""
        return document_of(self.item)

    @property
    def key(self) -> str:
        """The unit's name in the journal."""
        return f"{self.item.id}#{self.attempt}"

    def derive(self, *purpose: object) -> int:
        """Return a sampling seed for one ask of this unit."""
        return derive_seed(self.seed, self.item.id, self.attempt, *purpose)

    def make_rng(self, *purpose: object) -> random.Random:
        """Return a generator of random numbers that is the same for every attempt."""
        return random.Random(derive_seed(self.seed, self.item.id, *purpose))


@dataclass(frozen=True, slots=True)
class Failure:
    """An ask that gave no record: why, and what the teacher said."""

    reason: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """What one unit gave, before any filter.

    ``counts`` are a generator's own tallies (JSON that was repaired, tests that passed), by name;
    they are added up in the report.
    """

    key: str
    records: tuple[Record, ...] = ()
    failures: tuple[Failure, ...] = ()
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, for the journal."""
        return {
            "key": self.key,
            "records": [record.to_json() for record in self.records],
            "failures": [[failure.reason, failure.text] for failure in self.failures],
            "asked": self.asked,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            **({"counts": dict(self.counts)} if self.counts else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Draft:
        """Read what ``to_json`` wrote."""
        return cls(
            data["key"],
            tuple(Record.from_json(record) for record in data["records"]),
            tuple(Failure(*failure) for failure in data["failures"]),
            data["asked"],
            data["prompt_tokens"],
            data["completion_tokens"],
            data.get("counts", {}),
        )


@dataclass(frozen=True, slots=True)
class Corpus:
    """Every item of one side of the split, in the plan's order, for generators that compare."""

    split: Split
    items: Sequence[Item] = ()
    seed: int = 0
