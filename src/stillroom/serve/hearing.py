"""Hearing: what comes of an answer, taken as it is written, and the events that tell it.

What is heard is counted on the thread of the work, where counting tokens may take its time; events
are made on the event loop. Knows nothing of who is asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from stillroom.models import TextModel
from stillroom.models.protocols import CanvasStep, CountingModel
from stillroom.records import Answer, Citation, Completion, Prompt
from stillroom.serve.counters import Counters
from stillroom.serve.refusals import explain
from stillroom.serve.replies import DONE, Reply, event

__all__ = [
    "Heard",
    "Item",
    "Said",
    "Spent",
    "relay_events",
    "reply_events",
    "sum_usage",
]

Item = str | Completion | Answer | CanvasStep
"""What the work on a text yields."""

Said = tuple[int, Item | None]
"""Which of a reply's texts, and what comes of it; None once it is over and counted."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a reply took, and why it ended."""

    usage: dict[str, int]
    finish_reason: str


class Heard:
    """What has come of one text so far; taken on the thread of the work."""

    def __init__(self, model: TextModel, prompt: Prompt) -> None:
        """Hear what a model writes of a prompt."""
        self._model, self._prompt = model, prompt
        self._pieces: list[str] = []
        self.citations: tuple[Citation, ...] | None = None
        self.details: Mapping[str, Any] = {}
        self.spent: Spent | None = None
        self._completion: Completion | None = None

    @property
    def text(self) -> str:
        """The text of the answer."""
        return self._completion.text if self._completion else "".join(self._pieces)

    def take(self, item: Item) -> None:
        """Keep what an item says of the answer."""
        if isinstance(item, str):
            self._pieces.append(item)
        elif isinstance(item, Answer):
            self.citations, self.details = item.citations, item.details
            self._completion = item.completion
        elif isinstance(item, Completion):
            self._completion = item

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


def _show(at: int, item: Item | None, reply: Reply, heard: Heard) -> Iterator[bytes]:
    """Yield the events of a piece of a text, of a step, or of a text's end."""
    if isinstance(item, str):
        yield reply.piece(at, item)
    elif isinstance(item, CanvasStep):
        yield reply.canvas(item)
    elif item is None and heard.spent is not None:
        if heard.citations is not None:
            yield reply.cited(at, heard.text, heard.citations, heard.details)
        yield reply.last(at, heard.spent.finish_reason)


async def reply_events(
    first: Said | None,
    items: AsyncIterator[Said],
    reply: Reply,
    heard: Sequence[Heard],
    counters: Counters,
    *,
    wants_usage: bool,
) -> AsyncIterator[bytes]:
    """Yield a reply's events; an error after the first ends the stream with an error object."""
    for at in range(len(heard)):
        if opening := reply.first(at):
            yield opening
    async with aclosing(items) as opened:  # type: ignore[type-var]  # ours is a generator
        try:
            if first is not None:
                for said in _show(*first, reply, heard[first[0]]):
                    yield said
            async for at, item in opened:
                for said in _show(at, item, reply, heard[at]):
                    yield said
        except Exception as error:  # noqa: BLE001  # the status is sent: only an event is left
            yield event(explain(error).to_json())
            return
    if any(one.spent is None for one in heard):
        return
    counters.count_reply(sum_usage(heard), *(one.details for one in heard))
    if wants_usage:
        yield reply.usage(sum_usage(heard))
    yield DONE


async def relay_events(
    first: dict[str, Any] | None, items: AsyncIterator[dict[str, Any]], model: str
) -> AsyncIterator[bytes]:
    """Yield another server's chunks under our model's name."""
    async with aclosing(items) as opened:  # type: ignore[type-var]  # ours is a generator
        try:
            if first is not None:
                yield event({**first, "model": model})
            async for item in opened:
                yield event({**item, "model": model})
        except Exception as error:  # noqa: BLE001  # the status is sent: only an event is left
            yield event(explain(error).to_json())
            return
    yield DONE
