"""How surprising a model finds a text: nats a token, in windows that each see what stands before.

A text longer than the model reads is cut at white space into windows, and within what has none, as
scripts without spaces; every token is judged once, given the tokens of the window before it. Knows
no record.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from stillroom.records import Prompt

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Surprise", "measure_surprise"]

_PIECE = re.compile(r"\s*\S+")


class Surprise(NamedTuple):
    """Nats and tokens of a text, and the nats a token of its worst window."""

    nats: float
    tokens: int
    worst: float

    @property
    def mean(self) -> float:
        """Nats a token; 0 where there is none."""
        return self.nats / self.tokens if self.tokens else 0.0

    @property
    def perplexity(self) -> float:
        """Exp of the mean."""
        return math.exp(min(self.mean, 700.0))


def measure_surprise(
    model: TextModel, text: str, *, window: int, before: Prompt | None = None
) -> Surprise:
    """Return the surprise of a text.

    Args:
        model: A causal model whose engine scores given texts.
        text: What is judged.
        window: Tokens of a window; each but the first sees the one before it.
        before: What the first window follows; by default nothing but the mark that begins a text.

    Raises:
        BackendError: If the engine scores no text, or a window does not fit its context.
    """
    nats, tokens, worst = 0.0, 0, 0.0
    last = ""
    for piece in _cut(model, text, window):
        prompt = before if before is not None and not tokens else Prompt(text=last)
        (score,) = model.score([prompt], [piece])
        spent = -score.total
        nats, tokens = nats + spent, tokens + len(score.logprobs)
        if score.logprobs:
            worst = max(worst, spent / len(score.logprobs))
        last = piece
    return Surprise(nats, tokens, worst)


def _cut(model: TextModel, text: str, window: int) -> Iterator[str]:
    """Yield pieces of about ``window`` tokens that add up to the text."""
    total = model.count_tokens(text)
    if total <= window:
        if text:
            yield text
        return
    pieces = _PIECE.findall(text) or [text]
    room = max(window * len(text) // total, 1)  # characters of a window, in the mean
    if max(map(len, pieces)) > room:
        yield from _fill(_split(text, room), room)
        return
    count = -(-total // window)
    share = -(-len(pieces) // count)
    rest = text[sum(map(len, pieces)) :]
    for start in range(0, len(pieces), share):
        piece = "".join(pieces[start : start + share])
        yield piece + rest if start + share >= len(pieces) else piece


def _split(text: str, room: int) -> Iterator[str]:
    """Yield words with the space before them, the long ones in pieces; they add up to the text."""
    end = 0
    for found in _PIECE.finditer(text):
        end = found.end()
        for start in range(found.start(), end, room):
            yield text[start : min(start + room, end)]
    if end < len(text):
        yield text[end:]


def _fill(pieces: Iterator[str], room: int) -> Iterator[str]:
    """Yield pieces joined up to so many characters."""
    held = ""
    for piece in pieces:
        if held and len(held) + len(piece) > room:
            yield held
            held = ""
        held += piece
    if held:
        yield held
