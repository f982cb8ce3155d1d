"""Perplexity: bounds on a causal model's perplexity over the record and its worst window.

Source: Wenzek et al. 2020, arXiv:1911.00359 (CCNet: perplexity as a measure of quality). Differs:
any causal checkpoint may score, and the worst window has its own bound, so that a span of noise in
a long text is not averaged away. Text that is too predictable (loops, boilerplate) is dropped as
well.

A text longer than the window is split at white space, or anywhere where there is none, as in
scripts without spaces; every token is scored once, given the tokens of the previous window.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field
from typing_extensions import override

from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.provenance import digest_json
from stillroom.recipes import Reference
from stillroom.records import Prompt, Record
from stillroom.synth.interfaces import FilterContext, FilterResult, ModelScoredFilter, ScoringState
from stillroom.synth.prompting.conversation import get_full_text, get_last_answer

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Perplexity", "PerplexityResult", "measure_perplexity"]


class Perplexity(ModelScoredFilter):
    """Drop texts that a language model finds too surprising or too predictable."""

    paper: ClassVar[str] = "arXiv:1911.00359"
    accepts_passages: ClassVar[bool] = True

    model: Reference = Field(DEFAULT_TEACHER, description="causal model that scores")
    of: Literal["answer", "whole"] = Field("answer", description="part of the record to score")
    window: int = Field(256, ge=16, description="tokens of a window")
    min_perplexity: float = Field(
        2.0, ge=1, description="minimum perplexity; below it a text is too predictable"
    )
    max_perplexity: float = Field(1000.0, gt=1, description="maximum perplexity of the whole text")
    max_window: float = Field(2000.0, gt=1, description="maximum perplexity of any window")

    @override
    def start(self, context: FilterContext) -> ScoringState:
        return _PerplexityState(self, context)


class _PerplexityState(ScoringState):
    def __init__(self, settings: Perplexity, context: FilterContext) -> None:
        self._settings = settings
        self._model = context.models.text_model(settings.model)
        self.fingerprint = digest_json([self._model.fingerprint, settings.of, settings.window])

    @override
    def measure(self, record: Record) -> Any:
        text = get_last_answer(record) if self._settings.of == "answer" else get_full_text(record)
        result = measure_perplexity(self._model, text, window=self._settings.window)
        if not result.tokens:
            return {"failed": "there is no text"}
        worst = math.exp(min(result.worst, 700.0))
        return {"perplexity": result.perplexity, "worst": worst, "tokens": result.tokens}

    @override
    def decide(self, record: Record, value: Any) -> FilterResult:
        settings, perplexity, worst = self._settings, value["perplexity"], value["worst"]
        if perplexity > settings.max_perplexity:
            return FilterResult(False, "too surprising", perplexity, settings.max_perplexity)
        if worst > settings.max_window:
            return FilterResult(False, "a stretch is too surprising", worst, settings.max_window)
        if perplexity < settings.min_perplexity:
            return FilterResult(False, "too predictable", perplexity, settings.min_perplexity)
        return FilterResult(True, score=perplexity)


_PIECE = re.compile(r"\s*\S+")


class PerplexityResult(NamedTuple):
    """Nats and tokens of a text, and the nats per token of its worst window."""

    nats: float
    tokens: int
    worst: float

    @property
    def perplexity(self) -> float:
        """Exponential of the nats per token; 1 without tokens."""
        return math.exp(min(self.nats / max(self.tokens, 1), 700.0))


def measure_perplexity(model: TextModel, text: str, *, window: int) -> PerplexityResult:
    """Return the negative log-likelihood of a text.

    Args:
        model: A causal model whose engine scores given texts.
        text: Text to score.
        window: Tokens of a window; each is conditioned on the one before it, the first on
            nothing but the beginning-of-text token.

    Raises:
        BackendError: If the engine cannot score texts, or a window does not fit its context.
    """
    nats, tokens, worst = 0.0, 0, 0.0
    previous = ""
    for piece in _split_windows(model, text, window):
        (score,) = model.score([Prompt(text=previous)], [piece])
        nats_of_piece = -score.total
        nats, tokens = nats + nats_of_piece, tokens + len(score.logprobs)
        if score.logprobs:
            worst = max(worst, nats_of_piece / len(score.logprobs))
        previous = piece
    return PerplexityResult(nats, tokens, worst)


def _split_windows(model: TextModel, text: str, window: int) -> Iterator[str]:
    """Yield pieces of about ``window`` tokens whose concatenation is the text."""
    total = model.count_tokens(text)
    if total <= window:
        if text:
            yield text
        return
    pieces = _PIECE.findall(text) or [text]
    window_length = max(window * len(text) // total, 1)  # mean characters per window
    if max(map(len, pieces)) > window_length:
        yield from _join_pieces(_split_pieces(text, window_length), window_length)
        return
    count = -(-total // window)
    share = -(-len(pieces) // count)
    trailing = text[sum(map(len, pieces)) :]
    for start in range(0, len(pieces), share):
        piece = "".join(pieces[start : start + share])
        yield piece + trailing if start + share >= len(pieces) else piece


def _split_pieces(text: str, length: int) -> Iterator[str]:
    """Yield words with their leading space, long ones split; their concatenation is the text."""
    end = 0
    for match in _PIECE.finditer(text):
        end = match.end()
        for start in range(match.start(), end, length):
            yield text[start : min(start + length, end)]
    if end < len(text):
        yield text[end:]


def _join_pieces(pieces: Iterator[str], length: int) -> Iterator[str]:
    """Yield pieces joined up to a number of characters."""
    joined = ""
    for piece in pieces:
        if joined and len(joined) + len(piece) > length:
            yield joined
            joined = ""
        joined += piece
    if joined:
        yield joined
