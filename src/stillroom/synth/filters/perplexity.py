"""Perplexity: bounds on a causal model's perplexity over the record and its worst window.

Source: Wenzek et al. 2020, arXiv:1911.00359 (CCNet: perplexity as a measure of quality). Differs:
any causal checkpoint may judge, and the worst window counts by itself, so that a stretch of noise
in a long text is not averaged away. What is too predictable (loops, boilerplate) falls as well.

A text longer than the model reads is cut at white space into windows, and within what has none, as
scripts without spaces; every token is judged once, given the tokens of the window before it. Knows
no record.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field
from typing_extensions import override

from stillroom.provenance import digest_json
from stillroom.recipes import Reference
from stillroom.records import Prompt, Record
from stillroom.synth.interfaces import (
    FilterContext,
    FilterResult,
    ModelScoredFilter,
    ScoringState,
    score_individually,
)
from stillroom.synth.prompting.conversation import get_full_text, get_last_answer

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = [
    "Perplexity",
    "PerplexityResult",
    "measure_perplexity",
]


class Perplexity(ModelScoredFilter):
    """Drops texts that a language model finds too surprising, or too plain."""

    paper: ClassVar[str] = "arXiv:1911.00359"
    judges_passages: ClassVar[bool] = True

    model: Reference = Field(
        "hub:HuggingFaceTB/SmolLM2-135M-Instruct", description="the causal model that judges"
    )
    of: Literal["answer", "whole"] = Field("answer", description="what is judged")
    window: int = Field(256, ge=16, description="tokens of a window")
    min_perplexity: float = Field(2.0, ge=1, description="less is too predictable")
    max_perplexity: float = Field(1000.0, gt=1, description="more is too surprising, over all")
    max_window: float = Field(2000.0, gt=1, description="more is too surprising, in any window")

    @override
    def begin(self, context: FilterContext) -> ScoringState:
        return _PerplexityState(self, context)


class _PerplexityState(ScoringState):
    def __init__(self, chosen: Perplexity, context: FilterContext) -> None:
        self._chosen = chosen
        self._model = context.models.text_model(chosen.model)
        self.fingerprint = digest_json([self._model.fingerprint, chosen.of, chosen.window])

    @override
    def measure(self, records: Sequence[Record]) -> list[Any]:
        return score_individually(records, self._measure)

    def _measure(self, record: Record) -> Any:
        text = get_last_answer(record) if self._chosen.of == "answer" else get_full_text(record)
        found = measure_perplexity(self._model, text, window=self._chosen.window)
        if not found.tokens:
            return {"failed": "there is no text"}
        worst = math.exp(min(found.worst, 700.0))
        return {"perplexity": found.perplexity, "worst": worst, "tokens": found.tokens}

    @override
    def weigh(self, record: Record, value: Any) -> FilterResult:
        chosen, whole, worst = self._chosen, value["perplexity"], value["worst"]
        if whole > chosen.max_perplexity:
            return FilterResult(False, "too surprising", whole, chosen.max_perplexity)
        if worst > chosen.max_window:
            return FilterResult(False, "a stretch is too surprising", worst, chosen.max_window)
        if whole < chosen.min_perplexity:
            return FilterResult(False, "too predictable", whole, chosen.min_perplexity)
        return FilterResult(True, score=whole)


_PIECE = re.compile(r"\s*\S+")


class PerplexityResult(NamedTuple):
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


def measure_perplexity(
    model: TextModel, text: str, *, window: int, before: Prompt | None = None
) -> PerplexityResult:
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
    for piece in _split_windows(model, text, window):
        prompt = before if before is not None and not tokens else Prompt(text=last)
        (score,) = model.score([prompt], [piece])
        spent = -score.total
        nats, tokens = nats + spent, tokens + len(score.logprobs)
        if score.logprobs:
            worst = max(worst, spent / len(score.logprobs))
        last = piece
    return PerplexityResult(nats, tokens, worst)


def _split_windows(model: TextModel, text: str, window: int) -> Iterator[str]:
    """Yield pieces of about ``window`` tokens that add up to the text."""
    total = model.count_tokens(text)
    if total <= window:
        if text:
            yield text
        return
    pieces = _PIECE.findall(text) or [text]
    room = max(window * len(text) // total, 1)  # characters of a window, in the mean
    if max(map(len, pieces)) > room:
        yield from _join_pieces(_split_pieces(text, room), room)
        return
    count = -(-total // window)
    share = -(-len(pieces) // count)
    rest = text[sum(map(len, pieces)) :]
    for start in range(0, len(pieces), share):
        piece = "".join(pieces[start : start + share])
        yield piece + rest if start + share >= len(pieces) else piece


def _split_pieces(text: str, room: int) -> Iterator[str]:
    """Yield words with the space before them, the long ones in pieces; they add up to the text."""
    end = 0
    for found in _PIECE.finditer(text):
        end = found.end()
        for start in range(found.start(), end, room):
            yield text[start : min(start + room, end)]
    if end < len(text):
        yield text[end:]


def _join_pieces(pieces: Iterator[str], room: int) -> Iterator[str]:
    """Yield pieces joined up to so many characters."""
    held = ""
    for piece in pieces:
        if held and len(held) + len(piece) > room:
            yield held
            held = ""
        held += piece
    if held:
        yield held
