"""Messages, prompts, completions, search hits, answers and training records.

A Prompt is messages (or raw text), a Completion is text with its token counts. A record's
``messages`` hold the conversation (or a single assistant message for plain text rows); ``fields``
hold everything else that methods use: question, answer, evidence, split, scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import Any, Literal, cast, get_args

from stillroom.errors import DataError
from stillroom.records.document import Location, Passage
from stillroom.records.origin import Origin, make_content_id

__all__ = [
    "EXTRAS_FIELD",
    "Answer",
    "Citation",
    "Completion",
    "Hit",
    "Message",
    "Prompt",
    "Record",
    "Role",
    "Sampling",
    "list_cited_quotes",
]

EXTRAS_FIELD = "message_extras"
"""The field with the extra keys of chat turns besides role and content."""
Role = Literal["system", "user", "assistant", "tool"]
_ROLES = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: Role
    content: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values in OpenAI's format."""
        return {"role": self.role, "content": self.content}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Message:
        """Parse one chat turn.

        Raises:
            DataError: If the role is unknown or the content is not text.
        """
        role, content = data.get("role"), data.get("content")
        if role not in _ROLES or not isinstance(content, str):
            raise DataError(
                f"message {dict(data)!r:.80} is not a chat turn",
                code="data.message",
                expected=f"role (one of: {', '.join(_ROLES)}) and content (text)",
                next="convert the row, or drop it",
            )
        return cls(cast("Role", role), content)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings; ``temperature`` 0 is greedy, ``top_k`` 0 and ``top_p`` 1 are off."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """Input of a model: chat messages, or raw ``text`` without a chat template.

    ``schema`` requests JSON that fits a JSON Schema. ``prefix`` starts the assistant's turn.
    """

    messages: tuple[Message, ...] = ()
    text: str = ""
    schema: Mapping[str, Any] | None = None
    prefix: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "messages": [message.to_json() for message in self.messages],
            "text": self.text,
            "schema": dict(self.schema) if self.schema is not None else None,
            "prefix": self.prefix,
        }


@dataclass(frozen=True, slots=True)
class Completion:
    """Output of a model. ``finish_reason`` is ``stop``, ``length`` or ``cancelled``."""

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Completion:
        """Build from the result of ``to_json``."""
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Hit:
    """Search result: a passage with its score and rank (from 1) for one query."""

    passage: Passage
    score: float
    rank: int


@dataclass(frozen=True, slots=True)
class Citation:
    """A mark ``[number]`` in an answer and the passage that it refers to."""

    number: int
    passage_id: str
    location: Location
    text: str


def list_cited_quotes(quotes: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the quotes without those that the next one continues, whose places it includes.

    The short answer of several is the first, before any text that is left out between them: what
    follows that may be about something else.
    """
    cited, parts = list[Mapping[str, Any]](), list[Mapping[str, Any]]()
    for quote in quotes:
        parts.append(quote)
        if not quote.get("continues"):
            pages = sorted({page for part in parts for page in part["pages"]})
            whole = [parts[0], *takewhile(lambda part: not part.get("is_apart"), parts[1:])]
            short = next((part["short"] for part in whole if part.get("short")), None)
            joined = {name: value for name, value in quote.items() if name != "short"}
            joined |= {"byte_start": parts[0]["byte_start"], "pages": pages}
            cited.append(joined | ({"short": short} if short else {}))
            parts = []
    return cited


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion (response) with its citations and the hits shown to the model."""

    completion: Completion
    citations: tuple[Citation, ...] = ()
    hits: tuple[Hit, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """A training record (example, sample): a conversation, named fields, and its origin."""

    messages: tuple[Message, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    _id: str = field(default="", init=False, repr=False, compare=False)

    @property
    def id(self) -> str:
        """Id derived from the messages, the fields and the chain."""
        if not self._id:  # cached: jobs use it at every step
            chain = [link.to_json() for link in self.origin.chain]
            messages = [message.to_json() for message in self.messages]
            digest = make_content_id("rec", messages, dict(self.fields), chain)
            object.__setattr__(self, "_id", digest)
        return self._id

    @property
    def tools(self) -> list[dict[str, Any]]:
        """Definitions of tools in ``fields.tools``, as OpenAI's API has them; empty if none."""
        tools = self.fields.get("tools")
        if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
            return tools
        return []

    @property
    def turns_without_loss(self) -> frozenset[int]:
        """Indices of turns that training leaves out: of weight 0, or labelled as undesirable.

        As for TRL's KTO, the label is a boolean; 0 and the text "False" may name a class.
        """
        if self.fields.get("label") is False and len(self.messages) > 1:
            return frozenset(range(len(self.messages)))
        extras = self.fields.get(EXTRAS_FIELD)
        known = extras if isinstance(extras, dict) else {}
        turns = ((turn, known.get(str(turn))) for turn in range(len(self.messages)))
        return frozenset(
            turn for turn, extra in turns if isinstance(extra, dict) and extra.get("weight") == 0
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, including the id for readers of the file."""
        return {
            "id": self.id,
            "messages": [message.to_json() for message in self.messages],
            "fields": dict(self.fields),
            "origin": self.origin.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Build from the result of ``to_json``.

        Raises:
            DataError: If a message or the origin is malformed.
        """
        return cls(
            tuple(Message.from_json(message) for message in data["messages"]),
            data.get("fields") or {},
            Origin.from_json(data.get("origin") or {}),
        )
