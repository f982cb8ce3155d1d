"""What a generator starts from: a passage, a record, a topic of a taxonomy, or nothing but a draw.

Every item has an id, a document (the unit that stands on one side of the split), an origin and a
text. Knows no file and no generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stillroom.records import Location, Origin, Passage, Record, content_id

__all__ = [
    "Blank",
    "Item",
    "SeedKind",
    "Topic",
    "document_of",
    "kind_of",
    "passage_of_record",
    "text_of_item",
]

SeedKind = Literal["passages", "records", "topics", "nothing"]


@dataclass(frozen=True, slots=True)
class Topic:
    """A leaf of a taxonomy: its path from the root, what it is about, and worked examples.

    ``examples`` are questions with their answers (and a ``context`` where the file gives one), as
    people wrote them; ``source`` names the file and line.
    """

    path: tuple[str, ...]
    description: str = ""
    examples: tuple[Mapping[str, str], ...] = ()
    source: str = ""
    origin: Origin = field(default_factory=Origin)

    @property
    def id(self) -> str:
        """An id that follows from the path, the description and the examples."""
        rows = [dict(example) for example in self.examples]
        return content_id("top", list(self.path), self.description, rows)

    @property
    def name(self) -> str:
        """The leaf's own name."""
        return self.path[-1] if self.path else ""

    def to_json(self) -> dict[str, Any]:
        """Return the record's ``topic`` field."""
        return {"id": self.id, "path": list(self.path), "source": self.source}


@dataclass(frozen=True, slots=True)
class Blank:
    """Nothing to start from but a number to draw by, of one side of the split."""

    side: str
    number: int

    @property
    def id(self) -> str:
        """The side and the number."""
        return f"draw-{self.side}-{self.number:06d}"

    @property
    def origin(self) -> Origin:
        """What is made of nothing is the model's alone."""
        return Origin("synthetic")


Item = Passage | Record | Topic | Blank


def kind_of(item: Item) -> SeedKind:
    """Return which kind of seed an item is."""
    if isinstance(item, Passage):
        return "passages"
    if isinstance(item, Record):
        return "records"
    return "topics" if isinstance(item, Topic) else "nothing"


def document_of(item: Item) -> str:
    """Return the unit that the split moves whole: a document, a record, a topic, a draw.

    Records with a ``document_id`` field stand where that document stands.
    """
    if isinstance(item, Passage):
        return item.document_id
    if isinstance(item, Record):
        name = item.fields.get("document_id")
        return name if isinstance(name, str) and name else content_id("doc", item.id)
    return item.id


def text_of_item(item: Item) -> str:
    """Return an item's words, as far as people or models wrote it before."""
    if isinstance(item, Passage):
        return item.text
    if isinstance(item, Record):
        return passage_of_record(item).text
    if isinstance(item, Topic):
        told = [text for example in item.examples for text in example.values()]
        return "\n".join([*item.path, item.description, *told])
    return ""


def passage_of_record(record: Record) -> Passage:
    """Return a record's text as a passage; its ``document_id`` field, or its id, is the document.

    What user and assistant say is taken, in order; system and tool messages are not.
    """
    texts = [
        message.content for message in record.messages if message.role in {"user", "assistant"}
    ]
    text = "\n\n".join(texts)
    place = Location("", "", 0, 0)
    return Passage(document_of(record), 0, len(text), text, place, origin=record.origin)
