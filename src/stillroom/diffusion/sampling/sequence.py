"""Requests and state of a sequence: blocks, and masked positions.

Masked positions are tracked by flags, not by the mask token: a prompt may contain it as text, and
sampling would not terminate if the model predicted it. Independent of the model.

Holes in a text are written ``[[N]]``: N mask tokens.

Confidence, margin and entropy are computed from logits before temperature: at low temperatures
every confidence rounds to 1, and the order falls back to left to right (Dream's issues 56, 72, 84).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from stillroom.errors import DataError
from stillroom.models.tokenization.chat_template import render_prompt
from stillroom.records import Message, Prompt

__all__ = [
    "Candidates",
    "CommittedTokens",
    "DecodingConstraint",
    "InfillRequest",
    "SampledSequence",
    "SequenceState",
    "StepIndex",
    "build_chat_request",
    "build_infill_request",
    "build_prompt_request",
    "build_text_request",
    "decode_text",
    "decode_tokens",
]

_HOLE = re.compile(r"\[\[(\d+)\]\]")


def build_chat_request(tokenizer: Any, text: str, max_new_tokens: int) -> InfillRequest:
    """Return the request for an answer to one user message."""
    return build_prompt_request(tokenizer, Prompt((Message("user", text),)), max_new_tokens)


def build_prompt_request(
    tokenizer: Any,
    prompt: Prompt,
    max_new_tokens: int,
    seed: int | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> InfillRequest:
    """Return the request for the completion of a prompt, encoded as in other backends."""
    text = render_prompt(tokenizer, prompt, tools)
    ids = tokenizer(text, add_special_tokens=not prompt.messages)["input_ids"]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    return InfillRequest(tuple(ids), max_new_tokens, seed)


def build_text_request(tokenizer: Any, text: str, max_new_tokens: int) -> InfillRequest:
    """Return the request for the continuation of a text, without a chat template."""
    return build_prompt_request(tokenizer, Prompt(text=text), max_new_tokens)


def build_infill_request(tokenizer: Any, text: str) -> InfillRequest:
    """Return the request for a text with holes ``[[N]]``.

    The pieces between holes are tokenized separately, the first with special tokens.
    """
    parts = _HOLE.split(text)
    ids: list[int | None] = list(tokenizer(parts[0])["input_ids"])
    for count, piece in zip(parts[1::2], parts[2::2], strict=True):
        ids += [None] * int(count)
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
    return InfillRequest(tuple(ids), 0)


def decode_text(tokenizer: Any, ids: Sequence[int | None]) -> str:
    """Return the text of tokens, without special ones."""
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def decode_tokens(tokenizer: Any, ids: Sequence[int], *, first: int = 0) -> list[str]:
    """Return the text of each token from the position ``first``.

    Tokens are decoded with a few tokens before them, so that leading spaces are kept; a character
    of several tokens is assigned to the last of them.
    """
    texts, before = [], ""
    for stop in range(first + 1, len(ids) + 1):
        start = max(0, stop - 8)
        now = _decode_ids(tokenizer, ids[start:stop])
        before = _decode_ids(tokenizer, ids[start : stop - 1])
        texts.append(now[len(before) :] if now.startswith(before) else now)
    return texts


def _decode_ids(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    ).rstrip("\ufffd")


class DecodingConstraint(Protocol):
    """Joint constraint on the masked positions of a text."""

    def choose(self, ids: Tensor, is_open: Tensor, positions: Tensor, logits: Tensor) -> Tensor:
        """Return a token for each position, (k,), given logits (k, V) and the current text."""


@dataclass(frozen=True, slots=True)
class InfillRequest:
    """Given tokens, holes to fill, and room for new tokens after them.

    Args:
        ids: Token ids; None is a hole of one token.
        max_new_tokens: Mask tokens after the text.
        seed: Random seed of this sequence; None: that of the settings.
        rule: Decoding constraint; None for none.
    """

    ids: tuple[int | None, ...] = ()
    max_new_tokens: int = 0
    seed: int | None = None
    rule: DecodingConstraint | None = None


@dataclass(slots=True)
class SequenceState:
    """State of one sequence during sampling (sequence state, canvas, x_t).

    Args:
        ids: Token ids, the mask token where masked, (T,), int64.
        is_open: Masked positions, (T,), bool.
        is_given: Positions of the request's tokens, (T,), bool.
        confidence: Confidence of each token when it was chosen, (T,), float64; 1 where given.
        chosen_at: Step in which each token was chosen, (T,), int64; -1 where given or masked.
        remasked: How often each position was remasked, (T,), int64.
        tail: First position after the request's own tokens.
    """

    ids: Tensor
    is_open: Tensor
    is_given: Tensor
    confidence: Tensor
    chosen_at: Tensor
    remasked: Tensor
    tail: int

    @classmethod
    def from_request(
        cls, request: InfillRequest, mask: int, vocabulary: int, *, room: int
    ) -> SequenceState:
        """Return the initial state of a request.

        Raises:
            DataError: If a token id is invalid or the mask token, or nothing is masked.
        """
        for position, token in enumerate(request.ids):
            if token is not None and not 0 <= token < vocabulary:
                raise _invalid_token_error(
                    f"token {token} is outside the vocabulary of {vocabulary}", position
                )
            if token == mask:
                raise _invalid_token_error(f"the text holds the mask token {mask}", position)
        filled = torch.tensor([token is not None for token in request.ids], dtype=torch.bool)
        is_given = torch.cat([filled, torch.zeros(room, dtype=torch.bool)])
        if bool(is_given.all()):
            raise DataError(
                "the request has no masked positions",
                code="diffusion.nothing-open",
                expected="a masked span in the text, or max_new_tokens of at least 1",
                next="set max_new_tokens, or mark spans as masked",
            )
        ids = torch.tensor(
            [mask if token is None else token for token in request.ids] + [mask] * room,
            dtype=torch.long,
        )
        return cls(
            ids,
            ~is_given,
            is_given,
            torch.where(is_given, 1.0, 0.0).double(),
            torch.full_like(ids, -1),
            torch.zeros_like(ids),
            len(request.ids),
        )

    @property
    def length(self) -> int:
        """Number of positions."""
        return len(self.ids)

    @property
    def first(self) -> int:
        """First position that is not given."""
        return int((~self.is_given).nonzero()[0])

    def masked_in(self, start: int, stop: int) -> Tensor:
        """Return the masked positions of a range, (k,), ascending."""
        return self.is_open[start:stop].nonzero()[:, 0] + start

    def unmasked_in(self, start: int, stop: int) -> Tensor:
        """Return the unmasked positions of a range that are not given, (m,), ascending."""
        return (~self.is_open & ~self.is_given)[start:stop].nonzero()[:, 0] + start

    def unmask(self, positions: Tensor, tokens: Tensor, confidence: Tensor, step: int) -> None:
        """Unmask positions."""
        self.ids[positions] = tokens
        self.is_open[positions] = False
        self.confidence[positions] = confidence
        self.chosen_at[positions] = step

    def remask(self, positions: Tensor, mask: int) -> None:
        """Remask positions."""
        self.ids[positions] = mask
        self.is_open[positions] = True
        self.confidence[positions] = 0.0
        self.chosen_at[positions] = -1
        self.remasked[positions] += 1

    def insert(self, position: int, count: int, mask: int) -> None:
        """Insert mask tokens before a position."""
        for name, value in (
            ("ids", mask),
            ("is_open", True),
            ("is_given", False),
            ("confidence", 0.0),
            ("chosen_at", -1),
            ("remasked", 0),
        ):
            tensor: Tensor = getattr(self, name)
            new = torch.full((count,), value, dtype=tensor.dtype)
            setattr(self, name, torch.cat([tensor[:position], new, tensor[position:]]))

    def blocks(self, size: int | None, *, aligned: bool) -> list[tuple[int, int]]:
        """Return the ranges of the (semi-autoregressive) blocks with masked positions, in order.

        Args:
            size: Block size; None for a single block. The last block may be shorter.
            aligned: Count blocks from position 0, as block-causal attention does, instead of from
                the first masked position.
        """
        if size is None:
            return [(0 if aligned else self.first, self.length)]
        start = self.first // size * size if aligned else self.first
        ranges = [
            (begin, min(begin + size, self.length)) for begin in range(start, self.length, size)
        ]
        return [(begin, stop) for begin, stop in ranges if bool(self.is_open[begin:stop].any())]

    def end_position(self, ends: Sequence[int]) -> int | None:
        """Return the position of the end token that ends the text: nothing before it is masked.

        None where there is none yet, or where given text follows it.
        """
        if not ends:
            return None
        is_new = ~self.is_open & ~self.is_given & (torch.arange(self.length) >= self.tail)
        is_end = is_new & torch.isin(self.ids, torch.tensor(list(ends)))
        positions = is_end.nonzero()[:, 0]
        if len(positions) == 0 or bool(self.is_open[: int(positions[0])].any()):
            return None
        return int(positions[0])


def _invalid_token_error(reason: str, position: int) -> DataError:
    return DataError(
        reason,
        code="diffusion.token",
        where=f"position {position} of the text",
        expected="token ids of the model other than the mask token",
        next="check the tokenizer, or mark the position as masked",
    )


@dataclass(frozen=True)
class StepIndex:
    """Progress of sampling: step within the block and block, both from 0, and number of blocks.

    ``opened`` is the number of masked positions at the start of the block.
    """

    number: int
    block: int
    blocks: int
    opened: int


@dataclass(frozen=True)
class Candidates:
    """Candidate tokens of a step.

    Args:
        places: Masked positions of the block, (k,), ascending.
        tokens: Candidate token at each, (k,).
        logits: Logits before temperature, impossible tokens at -inf, (k, V), at least float32.
        step: Progress of sampling.
        rng: Random generator of the sequence.
        open: Masked positions of the block, where some are not candidates in this step; 0: all are.
    """

    places: Tensor
    tokens: Tensor
    logits: Tensor
    step: StepIndex
    rng: torch.Generator
    open: int = 0

    @property
    def open_count(self) -> int:
        """Number of masked positions in the block, k or more."""
        return self.open or len(self.places)

    @cached_property
    def log_total(self) -> Tensor:
        """Logarithm of the softmax denominator, (k, 1)."""
        return torch.logsumexp(self.logits, -1, keepdim=True)

    @cached_property
    def confidence(self) -> Tensor:
        """Probability of each candidate token, (k,), float64, on the CPU."""
        scores = self.logits.gather(-1, self.tokens[:, None])
        return (scores - self.log_total)[:, 0].double().exp().cpu()

    @cached_property
    def margin(self) -> Tensor:
        """Difference of the two highest probabilities, (k,), float64."""
        two = (self.logits.topk(2, -1).values - self.log_total).double().exp()
        return (two[:, 0] - two[:, 1]).cpu()

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of each candidate's distribution, in nats, (k,), float64."""
        logprobs = self.logits - self.log_total
        terms = torch.where(logprobs == float("-inf"), 0.0, logprobs.exp() * logprobs)
        return -terms.sum(-1).double().cpu()

    def reorder(self, by: Tensor) -> Candidates:
        """Return the candidates in another order, given as indices, (k,)."""
        device = self.logits.device
        reordered = Candidates(
            self.places[by],
            self.tokens[by.to(device)],
            self.logits[by.to(device)],
            self.step,
            self.rng,
            self.open_count,
        )
        for name in ("confidence", "margin", "entropy"):
            if name in self.__dict__:
                reordered.__dict__[name] = self.__dict__[name][by]
        if "log_total" in self.__dict__:
            reordered.__dict__["log_total"] = self.log_total[by.to(device)]
        return reordered


@dataclass(frozen=True)
class CommittedTokens:
    """Tokens unmasked in earlier steps of a block, for remasking.

    Args:
        places: Their positions, (m,), ascending.
        tokens: Their ids, (m,).
        confidence: Their confidence when chosen, (m,), float64.
        logits: Current logits at these positions, (m, V), where the method needs them.
        step: Progress of sampling.
        steps: Number of steps of the block, if known; else 0.
        rng: Random generator of the sequence.
    """

    places: Tensor
    tokens: Tensor
    confidence: Tensor
    logits: Tensor | None
    step: StepIndex
    steps: int
    rng: torch.Generator


@dataclass(frozen=True, slots=True)
class SampledSequence:
    """Result of sampling one sequence.

    Args:
        ids: All token ids; the mask token where sampling ended before.
        new_ids: Tokens after the request's own, up to the end token, without it.
        finish_reason: ``stop`` at an end token, ``length`` without, ``cancelled``.
        nfe: Forward passes.
        steps: Decoding steps.
        confidence: Confidence of each token when it was chosen; 1 where given.
        chosen_at: Step in which each token was chosen; -1 where given or masked.
        reopened: Number of tokens remasked or replaced.
        drift: Mean cosine distance of cached values from recomputed ones; None if the cache is
            exact.
    """

    ids: tuple[int, ...]
    new_ids: tuple[int, ...]
    finish_reason: str
    nfe: int
    steps: int
    confidence: tuple[float, ...]
    chosen_at: tuple[int, ...]
    reopened: int
    drift: float | None = None
