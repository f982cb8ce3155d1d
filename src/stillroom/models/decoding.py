"""Drawing the next token, and turning tokens into text without cutting characters.

Each completion has its own random numbers, so that what is drawn depends on nothing beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stillroom.models.grammar import Matcher
from stillroom.models.requests import cut_at_stop, held_back
from stillroom.records import Sampling

__all__ = ["Drawing", "choose_token"]

_TAIL = 4


def choose_token(
    logits: torch.Tensor, seen: Sequence[int], sampling: Sampling, rng: torch.Generator
) -> int:
    """Draw one token.

    Args:
        logits: (V,), any float dtype; not changed.
        seen: Every token of prompt and completion, for the repetition penalty.
        sampling: How to draw.
        rng: This completion's own random numbers, on the processor.

    Returns:
        The token's id.
    """
    scores = logits.float().cpu()
    if sampling.repetition_penalty != 1.0 and seen:
        scores = scores.clone()
        index = torch.tensor(sorted(set(seen)))
        old = scores[index]
        penalty = sampling.repetition_penalty
        scores[index] = torch.where(old > 0, old / penalty, old * penalty)
    if sampling.temperature <= 0:
        return int(scores.argmax())
    likeliest = int(scores.argmax())
    scores = scores / sampling.temperature
    if not torch.isfinite(scores.max()):  # so cold that numbers end: the limit is greedy
        return likeliest
    if 0 < sampling.top_k < scores.numel():
        least = scores.topk(sampling.top_k).values[-1]
        scores = scores.masked_fill(scores < least, float("-inf"))
    chances = scores.softmax(-1)
    if sampling.top_p < 1.0:
        chances = _nucleus(chances, sampling.top_p)
    return int(torch.multinomial(chances, 1, generator=rng))


def _nucleus(chances: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of tokens whose chances reach ``top_p``; always the likeliest one."""
    ordered, index = chances.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    is_left = before >= top_p
    is_left[0] = False  # also where top_p is too small for a float32
    kept = ordered.masked_fill(is_left, 0.0)
    return torch.zeros_like(chances).scatter_(0, index, kept)


class Drawing:
    """One completion while it is drawn: its tokens, its text, and why it ended."""

    def __init__(
        self,
        tokenizer: Any,
        prompt_ids: list[int],
        sampling: Sampling,
        ends: frozenset[int],
        room: int,
        matcher: Matcher | None = None,
    ) -> None:
        """Begin after the prompt.

        Args:
            tokenizer: A transformers tokenizer.
            prompt_ids: The prompt's tokens.
            sampling: How to draw.
            ends: Tokens that end a completion.
            room: At most this many tokens.
            matcher: Holds the completion to a schema.
        """
        self.prompt_ids = prompt_ids
        self.ids: list[int] = []
        self.reason = ""
        self.error: Exception | None = None
        """What went wrong over this one, which then ended; the others of its batch go on."""
        self.text = ""
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._ends = ends
        self._room = room
        self._matcher = matcher
        self._rng = torch.Generator().manual_seed(sampling.seed & 0x7FFFFFFFFFFFFFFF)
        self._tail = prompt_ids[-_TAIL:]
        self._lead = len(self._decode(self._tail))

    def draw(self, logits: torch.Tensor) -> int:
        """Draw one token from (V,) logits, note it, and return it."""
        if self._matcher is not None:
            allowed = torch.from_numpy(self._matcher.allowed())
            logits = logits.float().cpu().masked_fill(~allowed, float("-inf"))
        seen = self.prompt_ids + self.ids if self._sampling.repetition_penalty != 1.0 else ()
        token = choose_token(logits, seen, self._sampling, self._rng)
        if token in self._ends:
            self.finish("stop")
            return token
        self.ids.append(token)
        must_end = self._matcher is not None and self._matcher.take(token)
        if self._sampling.stop:
            self.text, found = cut_at_stop(self._decoded(), self._sampling.stop)
            if found:
                self.reason = "stop"
                return token
        if must_end:
            self.finish("stop")
        elif len(self.ids) >= self._room:
            self.finish("length")
        return token

    def try_draw(self, logits: torch.Tensor) -> int:
        """Draw one token as ``draw`` does; where that fails, end here and keep the error."""
        try:
            return self.draw(logits)
        except Exception as error:  # noqa: BLE001  # raised where the completion is asked for
            self.error, self.reason = error, "failed"
            return 0

    def finish(self, reason: str) -> None:
        """End here."""
        self.text = cut_at_stop(self._decoded(), self._sampling.stop)[0]
        self.reason = reason

    def settled(self) -> str:
        """Return the text that no later token can change."""
        if self.reason:
            return self.text
        text = self._decoded().rstrip("\ufffd")
        held = held_back(text, self._sampling.stop)
        return text[: len(text) - held]

    def _decoded(self) -> str:
        # Decoding after some of the prompt keeps the leading space that some tokenizers drop.
        return self._decode(self._tail + self.ids)[self._lead :]

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
