"""Hearing: what comes of an answer, taken as it is written here or by another server.

What is heard is counted on the thread of the work, where counting tokens may take its time. Knows
nothing of who is asked, nor of the dialect in which it is told.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from stillroom.models import TextModel
from stillroom.models.dialect import first_choice, read_count, read_end
from stillroom.models.protocols import CanvasStep, CountingModel
from stillroom.records import Answer, Citation, Completion, Prompt

__all__ = [
    "Heard",
    "Item",
    "Relayed",
    "Said",
    "Spent",
    "Written",
    "sum_usage",
]

Item = str | Completion | Answer | CanvasStep | dict[str, Any]
"""What the work on a text yields; a dict is another server's answer, or a chunk of it."""

Said = tuple[int, Item | None]
"""Which of a reply's texts, and what comes of it; None once it is over and counted."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a text took, and why it ended.

    Args:
        usage: Tokens of the prompt, of what was written, and of both.
        finish_reason: ``stop`` or ``length``; of another server's also ``content_filter``, and
            ``broken`` where it gave up.
        cached_tokens: How many of the prompt's another server had read before.
        reasoning_tokens: How many of those written another server's model thought with.
        is_told: Whether they were counted at all: another server need not.
    """

    usage: dict[str, int]
    finish_reason: str
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    is_told: bool = True


class Heard(ABC):
    """What has come of one text so far; taken on the thread of the work."""

    citations: tuple[Citation, ...] | None = None
    details: Mapping[str, Any] = {}
    spent: Spent | None = None

    @property
    @abstractmethod
    def text(self) -> str:
        """The text of the answer."""

    @property
    @abstractmethod
    def turns_before(self) -> int:
        """How many messages come before the last one."""

    @abstractmethod
    def take(self, item: Item) -> None:
        """Keep what an item says of the answer."""

    @abstractmethod
    def end(self) -> None:
        """Say what was spent."""


class Written(Heard):
    """A text that a model writes here."""

    def __init__(self, model: TextModel, prompt: Prompt) -> None:
        """Hear what a model writes of a prompt."""
        self._model, self._prompt = model, prompt
        self._pieces: list[str] = []
        self._completion: Completion | None = None

    @property
    @override
    def text(self) -> str:
        return self._completion.text if self._completion else "".join(self._pieces)

    @property
    @override
    def turns_before(self) -> int:
        return len(self._prompt.messages) - 1

    @override
    def take(self, item: Item) -> None:
        if isinstance(item, str):
            self._pieces.append(item)
        elif isinstance(item, Answer):
            self.citations, self.details = item.citations, item.details
            self._completion = item.completion
        elif isinstance(item, Completion):
            self._completion = item

    @override
    def end(self) -> None:
        """Say what was spent: as the engine counted, or, where it does not tell, as it would."""
        done = self._completion or Completion(self.text)
        spent = done.completion_tokens
        if done.text and not spent:
            spent = self._model.count_tokens(done.text)
        read = done.prompt_tokens or self._count_prompt()
        usage = {
            "prompt_tokens": read,
            "completion_tokens": spent,
            "total_tokens": read + spent,
        }
        self.spent = Spent(usage, "length" if done.finish_reason == "length" else "stop")

    def _count_prompt(self) -> int:
        """Return the tokens of the prompt, with its template's where the model can tell them.

        A prompt with documents in it is the answering method's own: its question alone is known.
        """
        if isinstance(self._model, CountingModel) and self.citations is None:
            return self._model.count_prompt(self._prompt)
        texts = [message.content for message in self._prompt.messages] or [self._prompt.text]
        return sum(self._model.count_tokens(text) for text in texts)


class Relayed(Heard):
    """A text that another server writes, whose answer is passed on: whole, or chunk by chunk."""

    def __init__(self) -> None:
        """Hear nothing yet."""
        self.answer: dict[str, Any] = {}
        self.has_choice = False
        self._usage: dict[str, Any] | None = None
        self._end: object = None

    @property
    @override
    def text(self) -> str:
        """What is passed on is no text: it may call tools."""
        return ""

    @property
    @override
    def turns_before(self) -> int:
        return 0

    @override
    def take(self, item: Item) -> None:
        if not isinstance(item, dict):
            return
        self.answer = item
        if isinstance(item.get("usage"), dict):
            self._usage = item["usage"]
        if choice := first_choice(item):
            self.has_choice = True
            self._end = choice.get("finish_reason") or self._end

    @override
    def end(self) -> None:
        """Say what was spent, as far as the other server tells."""
        used = self._usage or {}
        read = read_count(used.get("prompt_tokens"))
        written = read_count(used.get("completion_tokens"))
        usage = {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }
        self.spent = Spent(
            usage,
            read_end(self._end),
            _count_within(used, "prompt_tokens_details", "cached_tokens"),
            _count_within(used, "completion_tokens_details", "reasoning_tokens"),
            self._usage is not None,
        )


def _count_within(usage: Mapping[str, Any], group: str, key: str) -> int:
    details = usage.get(group)
    return read_count(details.get(key)) if isinstance(details, dict) else 0


def sum_usage(heard: Sequence[Heard]) -> dict[str, int]:
    """Return what all texts of a reply took; the prompt that they share counts once."""
    spent = [one.spent.usage for one in heard if one.spent is not None]
    read = spent[0]["prompt_tokens"] if spent else 0
    written = sum(usage["completion_tokens"] for usage in spent)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }
