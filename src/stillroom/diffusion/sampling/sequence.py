"""Requests, the state of a sequence during sampling, and its candidate tokens.

Whether a place is open is never read from its token: a prompt may hold the mask token as text, and
a model that predicted it would otherwise never come to an end. Knows no model.

A hole is written ``[[N]]``: N open places, whatever stands before and behind.

Source of the sampler: the Gumbel-max trick in float64, as a race of exponential clocks: the token
with the largest probability over exponential noise. In float32 the noise has too few steps in its
tail, which lowers the effective temperature (Zheng et al. 2024, arXiv:2409.02908).

All measures come from logits before temperature: after it, at low temperatures, every confidence
rounds to 1 and the order falls back to left to right (Dream's issues 56, 72, 84 are that).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    "decode_sample",
    "decode_tokens",
    "draw_exponential",
    "sample_tokens",
    "suppress_tokens",
]


_HOLE = re.compile(r"\[\[(\d+)\]\]")


def build_chat_request(tokenizer: Any, text: str, max_new_tokens: int) -> InfillRequest:
    """Return the request for an answer to one user message."""
    return build_prompt_request(tokenizer, Prompt((Message("user", text),)), max_new_tokens)


def build_prompt_request(
    tokenizer: Any, prompt: Prompt, max_new_tokens: int, seed: int | None = None
) -> InfillRequest:
    """Return the request for a completion of a prompt, as other backends encode it."""
    own = not (prompt.messages and getattr(tokenizer, "chat_template", None))
    ids = tokenizer(render_prompt(tokenizer, prompt), add_special_tokens=own)["input_ids"]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    return InfillRequest(tuple(ids), max_new_tokens, seed)


def build_text_request(tokenizer: Any, text: str, max_new_tokens: int) -> InfillRequest:
    """Return the request that goes on with a text, no template around it."""
    return build_prompt_request(tokenizer, Prompt(text=text), max_new_tokens)


def build_infill_request(tokenizer: Any, text: str) -> InfillRequest:
    """Return the request that fills the holes ``[[N]]`` of a text.

    Each piece between holes is tokenized by itself, the first as a text begins.
    """
    parts = _HOLE.split(text)
    ids: list[int | None] = list(tokenizer(parts[0])["input_ids"])
    for count, piece in zip(parts[1::2], parts[2::2], strict=True):
        ids += [None] * int(count)
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
    return InfillRequest(tuple(ids), 0)


def decode_sample(tokenizer: Any, sample: SampledSequence, *, whole: bool) -> str:
    """Return the text that was written, or all of it with what was given.

    Args:
        tokenizer: The model's.
        sample: What was written.
        whole: All of it, for texts with holes.
    """
    ids = list(sample.ids if whole else sample.new_ids)
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def decode_tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return each token's own text, as far as a token has one.

    Tokens are decoded in company of those before, so that leading spaces stay; a character that
    several tokens make up together stands at the last of them.
    """
    texts, before = [], ""
    for stop in range(1, len(ids) + 1):
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
    """What a text's open places may hold together."""

    def choose(self, ids: Tensor, is_open: Tensor, places: Tensor, logits: Tensor) -> Tensor:
        """Return a token for each place, (k,), by logits (k, V) and what stands already."""


@dataclass(frozen=True, slots=True)
class InfillRequest:
    """What is asked for: tokens that stand, holes to be filled, and room behind.

    Args:
        ids: The text; None is a hole of one token.
        max_new_tokens: Open places behind the text.
        seed: Of this text's own draws; None takes the settings'.
        rule: What the open places may hold together; None is anything.
    """

    ids: tuple[int | None, ...] = ()
    max_new_tokens: int = 0
    seed: int | None = None
    rule: DecodingConstraint | None = None


@dataclass(slots=True)
class SequenceState:
    """One text while it is written.

    Args:
        ids: Tokens, the mask token where open, (T,), int64.
        is_open: Where a token is still to be chosen, (T,), bool.
        is_given: Where the request's own tokens stand, (T,), bool.
        confidence: Of each chosen token when it was chosen, (T,), float64; 1 where given.
        chosen_at: The step in which each token was chosen, (T,), int64; -1 where given or open.
        reopened: How often each place was opened again, (T,), int64.
        tail: Where the room behind the text begins.
    """

    ids: Tensor
    is_open: Tensor
    is_given: Tensor
    confidence: Tensor
    chosen_at: Tensor
    reopened: Tensor
    tail: int

    @classmethod
    def of(cls, request: InfillRequest, mask: int, vocabulary: int, *, room: int) -> SequenceState:
        """Lay out a request.

        Args:
            request: What is asked for.
            mask: The mask token.
            vocabulary: How many tokens the model knows.
            room: Open places behind the text.

        Raises:
            DataError: If a token is no token of the model's, is the mask token, or nothing is open.
        """
        for at, token in enumerate(request.ids):
            if token is not None and not 0 <= token < vocabulary:
                raise _invalid_token_error(
                    f"token {token} is not among the model's {vocabulary}", at
                )
            if token == mask:
                raise _invalid_token_error(f"the text holds the mask token {mask}", at)
        given = torch.tensor([token is not None for token in request.ids], dtype=torch.bool)
        is_given = torch.cat([given, torch.zeros(room, dtype=torch.bool)])
        if bool(is_given.all()):
            raise DataError(
                "there is nothing to write",
                code="diffusion.nothing-open",
                expected="a hole in the text, or max_new_tokens of at least 1",
                next="give max_new_tokens, or mark holes",
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
        """How many places there are."""
        return len(self.ids)

    @property
    def first(self) -> int:
        """The first place that is not given."""
        return int((~self.is_given).nonzero()[0])

    def open_in(self, start: int, stop: int) -> Tensor:
        """Return the open places of a range, (k,), rising."""
        return self.is_open[start:stop].nonzero()[:, 0] + start

    def written_in(self, start: int, stop: int) -> Tensor:
        """Return the places of a range that were written, not given, (m,), rising."""
        return (~self.is_open & ~self.is_given)[start:stop].nonzero()[:, 0] + start

    def commit(self, places: Tensor, tokens: Tensor, confidence: Tensor, step: int) -> None:
        """Write tokens at places."""
        self.ids[places] = tokens
        self.is_open[places] = False
        self.confidence[places] = confidence
        self.chosen_at[places] = step

    def reopen(self, places: Tensor, mask: int) -> None:
        """Take tokens back."""
        self.ids[places] = mask
        self.is_open[places] = True
        self.confidence[places] = 0.0
        self.chosen_at[places] = -1
        self.reopened[places] += 1

    def insert(self, at: int, count: int, mask: int) -> None:
        """Put open places before place ``at``."""
        for name, value in (
            ("ids", mask),
            ("is_open", True),
            ("is_given", False),
            ("confidence", 0.0),
            ("chosen_at", -1),
            ("reopened", 0),
        ):
            own: Tensor = getattr(self, name)
            new = torch.full((count,), value, dtype=own.dtype)
            setattr(self, name, torch.cat([own[:at], new, own[at:]]))

    def blocks(self, size: int | None, *, aligned: bool) -> list[tuple[int, int]]:
        """Return the ranges that are written one after the other; those with nothing open left out.

        Args:
            size: Places of a block; None is one block. The last may be shorter.
            aligned: Count blocks from place 0, as block-causal attention does, instead of from the
                first open one.
        """
        if size is None:
            return [(0 if aligned else self.first, self.length)]
        start = self.first // size * size if aligned else self.first
        ranges = [
            (begin, min(begin + size, self.length)) for begin in range(start, self.length, size)
        ]
        return [(begin, stop) for begin, stop in ranges if bool(self.is_open[begin:stop].any())]

    def end_place(self, ends: Sequence[int]) -> int | None:
        """Return where the text has come to its end: an end token with nothing open before it.

        None where there is none yet, or where given text follows it.
        """
        if not ends:
            return None
        written = ~self.is_open & ~self.is_given & (torch.arange(self.length) >= self.tail)
        is_end = written & torch.isin(self.ids, torch.tensor(list(ends)))
        found = is_end.nonzero()[:, 0]
        if len(found) == 0 or bool(self.is_open[: int(found[0])].any()):
            return None
        return int(found[0])


def _invalid_token_error(what: str, at: int) -> DataError:
    return DataError(
        what,
        code="diffusion.token",
        where=f"place {at} of the text",
        expected="tokens of the model other than its mask token; holes are marked as holes",
        next="check the tokenizer, or mark the place as a hole",
    )


def suppress_tokens(logits: Tensor, tokens: Sequence[int], penalty: float = 0.0) -> Tensor:
    """Return logits with some tokens made impossible, or less likely by a penalty in nats.

    Args:
        logits: (k, V); not changed.
        tokens: Which.
        penalty: Taken off; 0 makes them impossible.
    """
    if not tokens:
        return logits
    found = logits.clone()
    index = torch.tensor(list(tokens), device=logits.device)
    if penalty:
        found[:, index] -= penalty
    else:
        found[:, index] = float("-inf")
    return found


def draw_exponential(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Return standard exponential noise in float64, above 0 everywhere."""
    uniform = torch.rand(*shape, generator=rng, dtype=torch.float64)
    # a uniform of exactly 0 would give noise of 0, which wins over every probability
    return uniform.clamp_(min=2.0**-53).neg_().add_(1).log_().neg_()


def sample_tokens(
    logits: Tensor,
    *,
    temperature: float,
    rng: torch.Generator,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Return one token a row, (k,).

    Args:
        logits: (k, V), at least float32.
        temperature: 0 takes the likeliest; ties go to the lowest token.
        rng: The text's own random numbers, on the processor.
        top_k: Only so many of the likeliest; 0 is all.
        top_p: Only the smallest set whose chances reach this; always the likeliest.
    """
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.double().cpu()
    scores = scores - scores.amax(-1, keepdim=True)
    chances = scores.div_(temperature).exp_()  # not normalized: only ratios count
    if 0 < top_k < chances.shape[-1]:
        least = chances.topk(top_k, -1).values[:, -1:]
        chances = chances.masked_fill(chances < least, 0.0)
    if top_p < 1.0:
        chances = chances / chances.sum(-1, keepdim=True)
        ordered, index = chances.sort(dim=-1, descending=True, stable=True)
        is_out = ordered.cumsum(-1) - ordered >= top_p
        is_out[:, 0] = False
        chances = chances.masked_fill(torch.zeros_like(is_out).scatter(1, index, is_out), 0.0)
    return (chances / draw_exponential(chances.shape, rng)).argmax(-1).to(logits.device)


@dataclass(frozen=True)
class StepIndex:
    """Where a text stands: step of its block (from 0), block (from 0), and how many blocks.

    ``opened`` is how many places were open when the block began.
    """

    number: int
    block: int
    blocks: int
    opened: int


@dataclass(frozen=True)
class Candidates:
    """The candidates of a step.

    Args:
        places: Open places of the block, (k,), rising.
        tokens: What would be written there, (k,).
        logits: Untempered, what is impossible left out, (k, V), at least float32.
        step: Where the text stands.
        rng: The text's own random numbers.
        open: Open places of the block, where some are no candidates in this step; 0 says that all
            are.
    """

    places: Tensor
    tokens: Tensor
    logits: Tensor
    step: StepIndex
    rng: torch.Generator
    open: int = 0

    @property
    def open_count(self) -> int:
        """How many places of the block are open, k or more."""
        return self.open or len(self.places)

    @cached_property
    def log_total(self) -> Tensor:
        """The logarithm of the softmax's denominator, (k, 1)."""
        return torch.logsumexp(self.logits, -1, keepdim=True)

    @cached_property
    def confidence(self) -> Tensor:
        """The probability of each candidate's token, (k,), float64, on the processor."""
        own = self.logits.gather(-1, self.tokens[:, None])
        return (own - self.log_total)[:, 0].double().exp().cpu()

    @cached_property
    def margin(self) -> Tensor:
        """The likeliest token's probability less the second's, (k,), float64."""
        two = (self.logits.topk(2, -1).values - self.log_total).double().exp()
        return (two[:, 0] - two[:, 1]).cpu()

    @cached_property
    def entropy(self) -> Tensor:
        """Of each candidate's distribution, in nats, (k,), float64."""
        logprobs = self.logits - self.log_total
        terms = torch.where(logprobs == float("-inf"), 0.0, logprobs.exp() * logprobs)
        return -terms.sum(-1).double().cpu()

    def ordered(self, by: Tensor) -> Candidates:
        """Return the view with its candidates in another order, (k,) indices."""
        device = self.logits.device
        found = Candidates(
            self.places[by],
            self.tokens[by.to(device)],
            self.logits[by.to(device)],
            self.step,
            self.rng,
            self.open_count,
        )
        for name in ("confidence", "margin", "entropy"):
            if name in self.__dict__:
                found.__dict__[name] = self.__dict__[name][by]
        if "log_total" in self.__dict__:
            found.__dict__["log_total"] = self.log_total[by.to(device)]
        return found


@dataclass(frozen=True)
class CommittedTokens:
    """What was written so far in a block, for remasking.

    Args:
        places: Places written in earlier steps, (m,), rising.
        tokens: What stands there, (m,).
        confidence: Of each when it was chosen, (m,), float64.
        logits: What the model says there now, (m, V), where the method asks for it.
        step: Where the text stands.
        steps: How many steps the block will take, where that is known; else 0.
        rng: The text's own random numbers.
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
    """A finished text.

    Args:
        ids: All of it, as it stands; the mask token where it ended before.
        new_ids: What was written behind the request's text, up to its end token, that left out.
        finish_reason: ``stop`` at an end token, ``length`` without, ``cancelled``.
        nfe: Readings of the model.
        steps: Steps taken.
        confidence: Of each token when it was chosen; 1 where given.
        chosen_at: The step each was chosen in; -1 where given or open.
        reopened: How many tokens were taken back or replaced.
        drift: How far kept values had moved when they were read again: one less their cosine, the
            mean; None where nothing that is kept grows stale.
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
