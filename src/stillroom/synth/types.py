"""Shared data types: seeds, work items, generation results and rejected records.

Every item has an id, a document (the unit of the split), an origin and a text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from stillroom.provenance import digest_json
from stillroom.records import Location, Origin, Passage, Record, make_content_id

__all__ = [
    "CacheProtocol",
    "GenerationFailure",
    "GenerationResult",
    "GeneratorContext",
    "NoSeed",
    "RejectedRecord",
    "SeedItem",
    "SeedKind",
    "Split",
    "Topic",
    "WorkItem",
    "derive_seed",
    "get_document_id",
    "get_item_text",
    "get_seed_kind",
    "has_unclear_split",
    "read_split",
    "to_passage",
]

SeedKind = Literal["passages", "records", "topics", "nothing"]


@dataclass(frozen=True, slots=True)
class Topic:
    """A leaf of a taxonomy: its path from the root, its description, and worked examples.

    ``examples`` are human-written questions with answers (and a ``context`` if given); ``source``
    names the file and line.
    """

    path: tuple[str, ...]
    description: str = ""
    examples: tuple[Mapping[str, str], ...] = ()
    source: str = ""
    origin: Origin = field(default_factory=Origin)

    @property
    def id(self) -> str:
        """Id derived from the path, the description and the examples."""
        rows = [dict(example) for example in self.examples]
        return make_content_id("top", list(self.path), self.description, rows)

    @property
    def name(self) -> str:
        """Name of the leaf."""
        return self.path[-1] if self.path else ""

    def to_json(self) -> dict[str, Any]:
        """Return the record's ``topic`` field."""
        return {"id": self.id, "path": list(self.path), "source": self.source}


@dataclass(frozen=True, slots=True)
class NoSeed:
    """An empty seed: a number of a draw on one side of the split."""

    side: str
    number: int

    @property
    def id(self) -> str:
        """Id of the side and the number."""
        return f"draw-{self.side}-{self.number:06d}"

    @property
    def origin(self) -> Origin:
        """Origin of records without a seed: synthetic."""
        return Origin("synthetic")


SeedItem = Passage | Record | Topic | NoSeed


def get_seed_kind(item: SeedItem) -> SeedKind:
    """Return the kind of a seed item."""
    if isinstance(item, Passage):
        return "passages"
    if isinstance(item, Record):
        return "records"
    return "topics" if isinstance(item, Topic) else "nothing"


def get_document_id(item: SeedItem) -> str:
    """Return the id of the unit of the split: a document, a record, a topic, a draw.

    Records with a ``document_id`` field are on the side of that document.
    """
    if isinstance(item, Passage):
        return item.document_id
    if isinstance(item, Record):
        name = item.fields.get("document_id")
        return name if isinstance(name, str) and name else make_content_id("doc", item.id)
    return item.id


def get_item_text(item: SeedItem) -> str:
    """Return an item's text; empty for a draw."""
    if isinstance(item, Passage):
        return item.text
    if isinstance(item, Record):
        return to_passage(item).text
    if isinstance(item, Topic):
        example_texts = [text for example in item.examples for text in example.values()]
        return "\n".join([*item.path, item.description, *example_texts])
    return ""


def to_passage(record: Record) -> Passage:
    """Convert a record to a passage; its ``document_id`` field, or its id, is the document.

    User and assistant messages are included, in order; system and tool messages are not.
    """
    texts = [
        message.content for message in record.messages if message.role in {"user", "assistant"}
    ]
    text = "\n\n".join(texts)
    location = Location("", "", 0, 0)
    return Passage(get_document_id(record), 0, len(text), text, location, origin=record.origin)


Split = Literal["train", "held_out"]
_SEED_BITS = 31
_SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(
        ("test", "testing", "devtest", "validation", "valid", "val", "eval", "evaluation", "dev"),
        "held_out",
    ),
    **dict.fromkeys(("holdout", "heldout"), "held_out"),
}
_SPLIT_PARTS = {
    *("sft", "gen", "prefs", "matched", "mismatched", "clean", "other", "set", "split", "mini"),
    *("public", "private", "hidden", "seen", "unseen", "ood", "full", "easy", "hard"),
}
_SHORT_PART = re.compile(r"\d*[a-z]{0,2}")  # a number, a version, a letter, a language


_ADJECTIVES = {"valid"}  # as in json_valid


def read_split(record: Record) -> Split | None:
    """Return the side that a record's own field names, as ``train_sft`` or ``test``; else None.

    A name is that of a split, before or after parts that name its kind on the hub or a number, or
    after any part in one word, as ``gsm8k_test``. Others, such as those of sources, name no side.
    """
    name, parts = _parse_split(record)
    splits = [at for at, part in enumerate(parts) if part in _SPLIT_NAMES]
    sides = {_SPLIT_NAMES[parts[at]] for at in splits}
    if len(sides) != 1 or not {splits[0], splits[-1]} & {0, len(parts) - 1}:
        return None
    rest = {*parts} - _SPLIT_NAMES.keys()
    is_known = all(part in _SPLIT_PARTS or _SHORT_PART.fullmatch(part) for part in rest)
    is_last = parts[-1] in _SPLIT_NAMES.keys() - _ADJECTIVES and not re.search(r"\s", name)
    return sides.pop() if is_known or is_last else None


def has_unclear_split(record: Record) -> bool:
    """Return whether a record's own field has a part that names test rows, but is not read so."""
    parts = _parse_split(record)[1]
    is_test = any(_SPLIT_NAMES.get(part) == "held_out" for part in parts)
    return is_test and read_split(record) != "held_out"


def _parse_split(record: Record) -> tuple[str, list[str]]:
    """Return the field ``split`` of a record, and its parts; of a list, those of all its names."""
    value = record.fields.get("split") or ""
    names = value if isinstance(value, list) else [value]
    name = "_".join(str(name).strip().lower() for name in names)
    name = re.sub(r"^\[(.*)\]$", lambda match: re.sub(r"['\"]", "", match[1]), name)
    name = re.sub(r"(?<![a-z0-9])(held|hold)[-_ ]out(?![a-z])", "holdout", name)
    name = re.sub(r"\[[^]]*\](?=$|\+)", "", name)
    parts = re.split(r"[-_.,/:+\s]+|(?<=[a-z])(?=[0-9])", name)
    return name, [part for part in parts if part]


def derive_seed(*parts: object) -> int:
    """Return a number below 2**31 that depends on the parts only."""
    return int(digest_json(parts)[:16], 16) % (1 << _SEED_BITS)


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One unit of work: an item, its side of the split, and the number of the attempt.

    All sampling for it depends on ``seed`` (the recipe's), the item's id and the attempt, never on
    earlier samples.
    """

    item: SeedItem
    split: Split
    attempt: int = 0
    seed: int = 0

    @property
    def kind(self) -> SeedKind:
        """Kind of the item."""
        return get_seed_kind(self.item)

    @property
    def passage(self) -> Passage:
        """The passage, or a record's text as one.

        Raises:
            TypeError: If the item has no document text; ``Generator.seed_kinds`` prevents it.
        """
        if isinstance(self.item, Passage):
            return self.item
        return to_passage(self.record)

    @property
    def record(self) -> Record:
        """The record.

        Raises:
            TypeError: If the item is not a record.
        """
        if not isinstance(self.item, Record):
            raise TypeError(f"{self.item.id} is not a record")
        return self.item

    @property
    def topic(self) -> Topic:
        """The topic.

        Raises:
            TypeError: If the item is not a topic.
        """
        if not isinstance(self.item, Topic):
            raise TypeError(f"{self.item.id} is not a topic")
        return self.item

    @property
    def document_id(self) -> str:
        """Id of the unit of the split that the item belongs to."""
        return get_document_id(self.item)

    @property
    def key(self) -> str:
        """Name of the unit in the journal."""
        return f"{self.item.id}#{self.attempt}"

    def derive(self, *purpose: object) -> int:
        """Return a sampling seed for one request of this unit."""
        return derive_seed(self.seed, self.item.id, self.attempt, *purpose)

    def make_rng(self, *purpose: object) -> random.Random:
        """Return a random number generator that is the same for every attempt."""
        return random.Random(derive_seed(self.seed, self.item.id, *purpose))


class CacheProtocol(Protocol):
    """Cache of finished work: a journal, or a dictionary in memory."""

    def get(self, key: str, default: object = None) -> object:
        """Return the value of a key, or the default."""

    def put(self, key: str, value: object) -> None:
        """Store the value of a key."""


@dataclass(frozen=True, slots=True)
class GenerationFailure:
    """A request without a record: the reason, and the teacher's text."""

    reason: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """Result of one unit, before any filter.

    ``counts`` are a generator's own counters (repaired JSON, passed tests), by name; they are
    summed in the report.
    """

    key: str
    records: tuple[Record, ...] = ()
    failures: tuple[GenerationFailure, ...] = ()
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values for the journal."""
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
    def from_json(cls, data: Mapping[str, Any]) -> GenerationResult:
        """Read the output of ``to_json``."""
        return cls(
            data["key"],
            tuple(Record.from_json(record) for record in data["records"]),
            tuple(GenerationFailure(*failure) for failure in data["failures"]),
            data["asked"],
            data["prompt_tokens"],
            data["completion_tokens"],
            data.get("counts", {}),
        )


@dataclass(frozen=True, slots=True)
class GeneratorContext:
    """All items of one side of the split, in the plan's order, for generators that compare."""

    split: Split
    items: Sequence[SeedItem] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A rejected record: the filter (or ``generator``), its reason, and the record or the text."""

    split: Split
    filter: str
    reason: str
    unit: str
    score: float = 0.0
    record: Record | None = None
    text: str = ""
    limit: float | None = None
    against: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    step: str = ""

    def to_json(self) -> dict[str, object]:
        """Return a row of dropped.jsonl."""
        return {
            "split": self.split,
            "filter": self.filter,
            "reason": self.reason,
            "score": round(self.score, 4),
            "unit": self.unit,
            "record": self.record.to_json() if self.record is not None else None,
            "text": self.text,
            **({"limit": self.limit} if self.limit is not None else {}),
            **({"against": self.against} if self.against else {}),
            **({"details": dict(self.details)} if self.details else {}),
            **({"step": self.step} if self.step else {}),
        }

    def to_exact_json(self) -> dict[str, object]:
        """Return a row that can be restored exactly: its score is not rounded."""
        return {**self.to_json(), "score": self.score}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RejectedRecord:
        """Read the output of ``to_json``."""
        record = data["record"]
        return cls(
            data["split"],
            data["filter"],
            data["reason"],
            data["unit"],
            data["score"],
            Record.from_json(record) if record is not None else None,
            data["text"],
            data.get("limit"),
            data.get("against", ""),
            data.get("details", data.get("told", {})),  # the second: written before 2026-12
            data.get("step", ""),
        )
