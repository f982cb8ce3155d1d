"""Several texts continued side by side by a causal model, one token each at a time.

Every call has the same number of rows; spare ones repeat the last. A prompt is read alone, padded
on the left to ``bucket_of`` its length; the texts then grow together in a lane, whose width follows
from the length of each of their prompts too (``lane_of``). So the shapes that a text meets do not
depend on the texts beside it, and prompts of unequal lengths are still continued together. Keys and
values stand in one block that is made once: nothing is copied as texts grow. Positions follow from
the mask, so that models with absolute positions read a padded prompt as they read it alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

__all__ = ["TextRows", "bucket_of", "lane_of"]

_LEAST_BUCKET = 32
_LEAST_LANE = 64


def bucket_of(length: int) -> int:
    """Return the padded length of a prompt: a multiple of 32, of 64 above 256, and so on."""
    step = _LEAST_BUCKET
    while length > 8 * step:
        step *= 2
    return -(-length // step) * step


def lane_of(length: int) -> int:
    """Return the width of the lane of a prompt: 64, 256, 1024 and so on, at least its bucket.

    Every lane that a group of prompts needs is a pass of the whole network for each token, while
    attention to padding costs little.
    """
    lane = _LEAST_LANE
    while lane < bucket_of(length):
        lane *= 4
    return lane


class TextRows:
    """A model's reading of a fixed number of texts, all of one lane."""

    def __init__(
        self, body: nn.Module, prompts: Sequence[Sequence[int]], *, rows: int, width: int, room: int
    ) -> None:
        """Read the prompts.

        Args:
            body: A causal transformer without its head, in evaluation mode.
            prompts: Token ids, at most ``rows`` of them, none empty or longer than ``width``.
            rows: Of every call, B.
            width: Of the lane.
            room: Tokens that will be pushed at most.
        """
        self._body = body
        parameters = inspect.signature(body.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._device = next(body.parameters()).device
        self._block = _Block(rows, width + room)
        self._layers: list[_Layer] = []
        self._cache = Cache(layer_class_to_replicate=cast("Any", self._add_layer))
        self._mask = torch.zeros(rows, width + room, dtype=torch.long, device=self._device)
        last = []
        for row, prompt in enumerate(prompts):
            self._block.row, self._block.used = row, 0
            self._block.first = width - bucket_of(len(prompt))
            last.append(self._read(row, list(prompt), width))
        for spare in range(len(prompts), rows):
            self._repeat(len(prompts) - 1, spare)
        last += [last[-1]] * (rows - len(last))
        self._block.row = None
        self.hidden: Tensor = torch.cat(last)
        """The hidden states of each row's last token, (B, H)."""

    def push(self, tokens: Tensor) -> Tensor:
        """Add a token to each row, (B,); return the hidden states there, (B, H)."""
        used = self._block.used
        self._mask[:, used] = 1
        mask = self._mask[:, : used + 1]
        self.hidden = self._call(tokens[:, None], mask, mask.sum(-1, keepdim=True) - 1)
        return self.hidden

    def _read(self, row: int, prompt: list[int], width: int) -> Tensor:
        first = self._block.first
        self._mask[row, width - len(prompt) : width] = 1
        padding = [0] * (width - first - len(prompt))
        ids = torch.tensor([padding + prompt], device=self._device)
        mask = self._mask[row : row + 1, first:width]
        return self._call(ids, mask, (mask.cumsum(-1) - 1).clamp_(min=0))

    def _add_layer(self) -> _Layer:
        self._layers.append(_Layer(self._block))
        return self._layers[-1]

    def _repeat(self, row: int, spare: int) -> None:
        self._mask[spare] = self._mask[row]
        for layer in self._layers:
            layer.repeat(row, spare)

    def _call(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        given = self._body(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: self._cache},
        )
        hidden: Tensor = given.last_hidden_state[:, -1]
        return hidden


class _Block:
    """What all layers share: the size of their space, the row being read, the columns in use.

    ``first`` is the column where the padded prompt of that row begins.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length = rows, length
        self.row: int | None = None
        self.first = self.used = 0


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers is not typed
    """Keys and values of one layer, (B, heads, length, dim), written in place."""

    def __init__(self, block: _Block) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._block = block
        self._space: tuple[Tensor, Tensor] | None = None
        self._used = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *rest: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new columns and return all that are in use, as views."""
        block = self._block
        if self._space is None:
            self._space = self._make(key_states), self._make(value_states)
        is_reading = block.row is not None
        start = block.first if is_reading else self._used
        stop = start + key_states.shape[-2]
        rows = slice(block.row, block.row + 1) if block.row is not None else slice(None)
        for space, new in zip(self._space, (key_states, value_states), strict=True):
            space[rows, :, start:stop] = new
        self._used = block.used = stop
        seen = slice(start if is_reading else 0, stop)
        keys, values = (space[rows, :, seen] for space in self._space)
        return keys, values

    def repeat(self, row: int, spare: int) -> None:
        """Copy one row's prompt to another row."""
        for space in self._space or ():
            space[spare, :, : self._used] = space[row, :, : self._used]

    def get_seq_length(self) -> int:
        """Return the columns in use; none while a prompt is read."""
        return 0 if self._block.row is not None else self._used

    def _make(self, like: Tensor) -> Tensor:
        block = self._block
        # Zeros, since the columns before a prompt are masked and not written: 0 times NaN is NaN.
        return like.new_zeros(block.rows, like.shape[1], block.length, like.shape[3])
