"""Record: one row of training or evaluation data, with its origin.

``messages`` hold the conversation (or a single assistant message for plain text rows); ``fields``
hold everything else a method may want: question, answer, evidence, split, scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stillroom.records.exchange import Message
from stillroom.records.origin import Origin, content_id

__all__ = ["Record"]


@dataclass(frozen=True, slots=True)
class Record:
    """One row: a conversation, named fields, and where it came from."""

    messages: tuple[Message, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    _id: str = field(default="", init=False, repr=False, compare=False)

    @property
    def id(self) -> str:
        """An id that follows from the messages, the fields and the chain."""
        if not self._id:  # made once: a job asks for it at every step
            chain = [link.to_json() for link in self.origin.chain]
            messages = [message.to_json() for message in self.messages]
            made = content_id("rec", messages, dict(self.fields), chain)
            object.__setattr__(self, "_id", made)
        return self._id

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, the id included for readers of the file."""
        return {
            "id": self.id,
            "messages": [message.to_json() for message in self.messages],
            "fields": dict(self.fields),
            "origin": self.origin.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Read what ``to_json`` wrote.

        Raises:
            DataError: If a message or the origin is malformed.
        """
        return cls(
            tuple(Message.from_json(message) for message in data["messages"]),
            data.get("fields") or {},
            Origin.from_json(data.get("origin") or {}),
        )
