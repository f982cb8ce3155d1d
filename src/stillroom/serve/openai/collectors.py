"""Collectors: the text of a reply so far, of a local or a proxied model, and its token usage.

They are filled on the worker thread, since counting tokens may be slow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from stillroom.models import TextModel
from stillroom.models.endpoints.transport import get_first_choice, read_count, read_finish_reason
from stillroom.models.interfaces import CountingModel, DenoisingStep
from stillroom.records import Answer, Citation, Completion, Prompt

__all__ = [
    "GenerationUsage",
    "LocalCollector",
    "OutputItem",
    "ProxyCollector",
    "ResponseCollector",
    "sum_usage",
]

OutputItem = str | Completion | Answer | DenoisingStep | dict[str, Any]
"""Item of generated text; a dict is an answer or a chunk of another server."""


@dataclass(frozen=True, slots=True)
class GenerationUsage:
    """Tokens used by a text, and its finish reason.

    Args:
        usage: Tokens of the prompt, of the completion, and of both.
        finish_reason: ``stop`` or ``length``; of another server also ``content_filter``, and
            ``broken`` if it failed.
        cached_tokens: Prompt tokens that another server had cached.
        reasoning_tokens: Completion tokens that another server's model used for reasoning.
        is_reported: Whether tokens were counted at all; another server may not report them.
    """

    usage: dict[str, int]
    finish_reason: str
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    is_reported: bool = True


class ResponseCollector(ABC):
    """State of one text so far; updated on the worker thread."""

    citations: tuple[Citation, ...] | None = None
    details: Mapping[str, Any] = {}
    spent: GenerationUsage | None = None
    mark: str = ""
    """Content credential behind the text, as invisible characters."""

    @property
    @abstractmethod
    def text(self) -> str:
        """Text of the answer."""

    @property
    @abstractmethod
    def turns_before(self) -> int:
        """Number of messages before the last one."""

    @abstractmethod
    def add(self, item: OutputItem) -> None:
        """Add an item to the answer."""

    @abstractmethod
    def finish(self) -> None:
        """Count the tokens used."""


class LocalCollector(ResponseCollector):
    """Text that a local model generates."""

    def __init__(self, model: TextModel, prompt: Prompt) -> None:
        self._model, self._prompt = model, prompt
        self._pieces: list[str] = []
        self._completion: Completion | None = None

    @property
    @override
    def text(self) -> str:
        text = self._completion.text if self._completion else "".join(self._pieces)
        return text + self.mark

    @property
    def model(self) -> str:
        """Fingerprint of the model that wrote."""
        return (self._completion.model if self._completion else "") or self._model.fingerprint

    @property
    @override
    def turns_before(self) -> int:
        return len(self._prompt.messages) - 1

    @override
    def add(self, item: OutputItem) -> None:
        if isinstance(item, str):
            self._pieces.append(item)
        elif isinstance(item, Answer):
            self.citations, self.details = item.citations, item.details
            self._completion = item.completion
        elif isinstance(item, Completion):
            self._completion = item

    @override
    def finish(self) -> None:
        """Count the tokens used: as reported by the engine, or with its tokenizer."""
        done = self._completion or Completion(self.text)
        spent = done.completion_tokens
        if done.text and not spent:
            spent = self._model.count_tokens(done.text)
        usage = _build_usage(done.prompt_tokens or self._count_prompt(), spent)
        self.spent = GenerationUsage(usage, "length" if done.finish_reason == "length" else "stop")

    def _count_prompt(self) -> int:
        """Return the tokens of the prompt, including its template if the model can count them.

        The prompt with documents belongs to the answering method: its question alone is known.
        """
        if isinstance(self._model, CountingModel) and self.citations is None:
            return self._model.count_prompt(self._prompt)
        texts = [message.content for message in self._prompt.messages] or [self._prompt.text]
        return sum(self._model.count_tokens(text) for text in texts)


class ProxyCollector(ResponseCollector):
    """Text of another server, which is forwarded whole or chunk by chunk."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}
        self.has_choice = False
        self._usage: dict[str, Any] | None = None
        self._end: object = None

    @property
    @override
    def text(self) -> str:
        """Always empty: the forwarded answer may contain tool calls."""
        return ""

    @property
    @override
    def turns_before(self) -> int:
        return 0

    @override
    def add(self, item: OutputItem) -> None:
        if not isinstance(item, dict):
            return
        self.answer = item
        if isinstance(item.get("usage"), dict):
            self._usage = item["usage"]
        if choice := get_first_choice(item):
            self.has_choice = True
            self._end = choice.get("finish_reason") or self._end

    @override
    def finish(self) -> None:
        """Count the tokens used, as reported by the other server."""
        used = self._usage or {}
        read = read_count(used.get("prompt_tokens"))
        written = read_count(used.get("completion_tokens"))
        self.spent = GenerationUsage(
            _build_usage(read, written),
            read_finish_reason(self._end),
            _read_detail(used, "prompt_tokens_details", "cached_tokens"),
            _read_detail(used, "completion_tokens_details", "reasoning_tokens"),
            self._usage is not None,
        )


def _read_detail(usage: Mapping[str, Any], group: str, key: str) -> int:
    details = usage.get(group)
    return read_count(details.get(key)) if isinstance(details, dict) else 0


def sum_usage(collectors: Sequence[ResponseCollector]) -> dict[str, int]:
    """Return the usage of all texts of a reply; their common prompt counts once."""
    spent = [collector.spent.usage for collector in collectors if collector.spent is not None]
    read = spent[0]["prompt_tokens"] if spent else 0
    return _build_usage(read, sum(usage["completion_tokens"] for usage in spent))


def _build_usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
