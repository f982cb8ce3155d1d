"""Canvas: one text while it is written, with a flag for every place that is still open.

Whether a place is open is never read from its token: a prompt may hold the mask token as text, and
a model that predicted it would otherwise never come to an end. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stillroom.errors import DataError

__all__ = ["Canvas", "Request", "Rule"]


class Rule(Protocol):
    """What a text's open places may hold together."""

    def choose(self, ids: Tensor, is_open: Tensor, places: Tensor, logits: Tensor) -> Tensor:
        """Return a token for each place, (k,), by logits (k, V) and what stands already."""


@dataclass(frozen=True, slots=True)
class Request:
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
    rule: Rule | None = None


@dataclass(slots=True)
class Canvas:
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
    def of(cls, request: Request, mask: int, vocabulary: int, *, room: int) -> Canvas:
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
                raise _unusable(f"token {token} is not among the model's {vocabulary}", at)
            if token == mask:
                raise _unusable(f"the text holds the mask token {mask}", at)
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


def _unusable(what: str, at: int) -> DataError:
    return DataError(
        what,
        code="diffusion.token",
        where=f"place {at} of the text",
        expected="tokens of the model other than its mask token; holes are marked as holes",
        next="check the tokenizer, or mark the place as a hole",
    )
