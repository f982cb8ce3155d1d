"""Token sampling (temperature, top_p), end at EOS or a stop sequence, and batched decoding.

Each completion has its own random generator, so that it is independent of others.

``complete_prompts`` and ``BatchedDecoder``, for measurements and rollouts, return token ids, as
tokenizing decoded text may give others.

``BatchedDecoder``: all forward passes have the same number of rows; unused ones repeat the last. A
prompt is read alone, left-padded to ``round_to_bucket`` of its length; sequences then grow together
in a lane, whose width is a function of prompt length as well (``round_to_lane``). Tensor shapes are
thus independent of other sequences, and prompts of different lengths are still batched. The KV
cache is one preallocated block, which is never copied. Positions are derived from the mask, so
that models with absolute positions read a padded prompt as they do alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from stillroom.models.local.causal_lm import find_end_tokens
from stillroom.models.local.runtime import silence_transformers
from stillroom.models.requests import count_held_back, cut_at_stop
from stillroom.records import Sampling

if TYPE_CHECKING:
    from stillroom.models.local.grammar import Matcher

__all__ = [
    "BatchedDecoder",
    "Continuation",
    "DecodingState",
    "complete_prompts",
    "round_to_bucket",
    "round_to_lane",
    "sample_token",
]

_TAIL_TOKENS = 4


def sample_token(
    logits: torch.Tensor, history: Sequence[int], sampling: Sampling, rng: torch.Generator
) -> int:
    """Sample one token: repetition penalty, top_k, nucleus (top_p); greedy at temperature 0.

    Args:
        logits: Logits, (V,), any float dtype; not modified.
        history: All tokens of prompt and completion, for the repetition penalty.
        sampling: Sampling parameters.
        rng: Random generator of the completion, on the CPU.

    Returns:
        The token id.
    """
    scores = logits.float().cpu()
    if sampling.repetition_penalty != 1.0 and history:
        scores = scores.clone()
        index = torch.tensor(sorted(set(history)))
        old = scores[index]
        penalty = sampling.repetition_penalty
        scores[index] = torch.where(old > 0, old / penalty, old * penalty)
    if sampling.temperature <= 0:
        return int(scores.argmax())
    likeliest = int(scores.argmax())
    scores = scores / sampling.temperature
    if not torch.isfinite(scores.max()):  # temperature too low for floats: greedy is the limit
        return likeliest
    if 0 < sampling.top_k < scores.numel():
        least = scores.topk(sampling.top_k).values[-1]
        scores = scores.masked_fill(scores < least, float("-inf"))
    chances = scores.softmax(-1)
    if sampling.top_p < 1.0:
        chances = _filter_nucleus(chances, sampling.top_p)
    return int(torch.multinomial(chances, 1, generator=rng))


def _filter_nucleus(chances: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of tokens whose probability reaches ``top_p``, at least one."""
    ordered, index = chances.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    is_left = before >= top_p
    is_left[0] = False  # also where top_p is too small for a float32
    filtered = ordered.masked_fill(is_left, 0.0)
    return torch.zeros_like(chances).scatter_(0, index, filtered)


class DecodingState:
    """State of one completion: its tokens, its text, and its finish_reason (stop, length)."""

    def __init__(
        self,
        tokenizer: Any,
        prompt_ids: list[int],
        sampling: Sampling,
        ends: frozenset[int],
        room: int,
        matcher: Matcher | None = None,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.ids: list[int] = []
        self.reason = ""
        self.error: Exception | None = None
        """Error of this completion, which has ended; others of the batch continue."""
        self.text = ""
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._ends = ends
        self._room = room
        self._matcher = matcher
        self._rng = torch.Generator().manual_seed(sampling.seed & 0x7FFFFFFFFFFFFFFF)
        self._tail = prompt_ids[-_TAIL_TOKENS:]
        self._lead = len(self._decode(self._tail))

    def draw(self, logits: torch.Tensor) -> int:
        """Sample one token from (V,) logits, append it, and return it."""
        if self._matcher is not None:
            allowed = torch.from_numpy(self._matcher.allowed())
            logits = logits.float().cpu().masked_fill(~allowed, float("-inf"))
        history = self.prompt_ids + self.ids if self._sampling.repetition_penalty != 1.0 else ()
        token = sample_token(logits, history, self._sampling, self._rng)
        if token in self._ends:
            self.finish("stop")
            return token
        self.ids.append(token)
        must_end = self._matcher is not None and self._matcher.take(token)
        if self._sampling.stop:
            self.text, is_stopped = cut_at_stop(self._decoded(), self._sampling.stop)
            if is_stopped:
                self.reason = "stop"
                return token
        if must_end:
            self.finish("stop")
        elif len(self.ids) >= self._room:
            self.finish("length")
        return token

    def try_draw(self, logits: torch.Tensor) -> int:
        """Sample as ``draw`` does; an exception ends the completion and is stored."""
        try:
            return self.draw(logits)
        except Exception as error:  # noqa: BLE001  # raised for this completion only
            self.error, self.reason = error, "failed"
            return 0

    def finish(self, reason: str) -> None:
        """End the completion."""
        self.text = cut_at_stop(self._decoded(), self._sampling.stop)[0]
        self.reason = reason

    def settled(self) -> str:
        """Return the part of the text that later tokens cannot change."""
        if self.reason:
            return self.text
        text = self._decoded().rstrip("\ufffd")
        held = count_held_back(text, self._sampling.stop)
        return text[: len(text) - held]

    def _decoded(self) -> str:
        # With tokens of the prompt before it, decoding keeps a leading space that some drop.
        return self._decode(self._tail + self.ids)[self._lead :]

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


@dataclass(frozen=True, slots=True)
class Continuation:
    """Continuation of a prompt: its tokens, including the end token if it ended."""

    ids: tuple[int, ...]
    has_ended: bool


def complete_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 16,
    on_done: Callable[[int], None] | None = None,
) -> list[Continuation]:
    """Continue prompts until an end token or the limit, ignoring the model's generation_config.

    Sampling uses the full distribution: top_k, top_p or penalties of a generation_config would
    change it.

    Returns:
        One Continuation per prompt, in order.
    """
    ends = sorted(find_end_tokens(model, tokenizer))
    continuations: dict[int, Continuation] = {}
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    was_training = bool(model.training)
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                rows = [prompts[index] for index in batch]
                written = _generate_batch(model, rows, ends, max_new_tokens, temperature)
                continuations |= dict(zip(batch, written, strict=True))
                if on_done:
                    on_done(len(batch))
    finally:
        model.train(was_training)
    return [continuations[index] for index in range(len(prompts))]


def _generate_batch(
    model: Any,
    rows: Sequence[Sequence[int]],
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float,
) -> list[Continuation]:
    from transformers import GenerationConfig

    width = max(len(row) for row in rows)
    filler = ends[0] if ends else 0
    ids = torch.full((len(rows), width), filler, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):  # padding is marked by the mask, not by ids
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    make: Any = GenerationConfig  # untyped
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    settings = make(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=filler,
        **(sampling if temperature > 0 else {"do_sample": False}),
    )
    device = next(model.parameters()).device
    previous, model.generation_config = model.generation_config, settings
    try:
        with silence_transformers():
            output = model.generate(ids.to(device), attention_mask=mask.to(device))
    finally:
        model.generation_config = previous
    return [_cut_at_end(row, ends) for row in output[:, width:].tolist()]


def _cut_at_end(row: list[int], ends: Sequence[int]) -> Continuation:
    for index, token in enumerate(row):
        if token in ends:
            return Continuation(tuple(row[: index + 1]), has_ended=True)
    return Continuation(tuple(row), has_ended=False)


_MIN_BUCKET = 32
_MIN_LANE = 64


def round_to_bucket(length: int) -> int:
    """Return the padded length of a prompt: a multiple of 32, of 64 above 256, and so on."""
    step = _MIN_BUCKET
    while length > 8 * step:
        step *= 2
    return -(-length // step) * step


def round_to_lane(length: int) -> int:
    """Return the lane width of a prompt: 64, 256, 1024 and so on, at least its bucket.

    Every lane of a group costs a forward pass per token, while attention to padding is cheap.
    """
    lane = _MIN_LANE
    while lane < round_to_bucket(length):
        lane *= 4
    return lane


class BatchedDecoder:
    """Incremental decoding of a fixed number of sequences in one lane."""

    def __init__(
        self, body: nn.Module, prompts: Sequence[Sequence[int]], *, rows: int, width: int, room: int
    ) -> None:
        """Prefill the prompts.

        Args:
            body: Causal transformer without its head, in evaluation mode.
            prompts: Token ids, at most ``rows`` prompts, none empty or longer than ``width``.
            rows: Batch size B of every forward pass.
            width: Lane width.
            room: Maximum tokens to push.
        """
        self._body = body
        parameters = inspect.signature(body.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._device = next(body.parameters()).device
        self._block = _CacheBlock(rows, width + room)
        self._layers: list[_BlockLayer] = []
        self._cache = Cache(layer_class_to_replicate=cast("Any", self._add_layer))
        self._mask = torch.zeros(rows, width + room, dtype=torch.long, device=self._device)
        last = []
        for row, prompt in enumerate(prompts):
            self._block.row, self._block.used = row, 0
            self._block.first = width - round_to_bucket(len(prompt))
            last.append(self._read(row, list(prompt), width))
        for spare in range(len(prompts), rows):
            self._repeat(len(prompts) - 1, spare)
        last += [last[-1]] * (rows - len(last))
        self._block.row = None
        self.hidden: Tensor = torch.cat(last)
        """Hidden states of each row's last token, (B, H)."""

    def push(self, tokens: Tensor) -> Tensor:
        """Append a token to each row, (B,); return the hidden states, (B, H)."""
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

    def _add_layer(self) -> _BlockLayer:
        self._layers.append(_BlockLayer(self._block))
        return self._layers[-1]

    def _repeat(self, row: int, spare: int) -> None:
        self._mask[spare] = self._mask[row]
        for layer in self._layers:
            layer.repeat(row, spare)

    def _call(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        output = self._body(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: self._cache},
        )
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden


class _CacheBlock:
    """State shared by all layers: the block's size, the row in prefill, the columns in use.

    ``first`` is the column of the padded prompt's start in that row.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length = rows, length
        self.row: int | None = None
        self.first = self.used = 0


class _BlockLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers is not typed
    """Keys and values of one layer, (B, heads, length, dim), updated in place."""

    def __init__(self, block: _CacheBlock) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._block = block
        self._space: tuple[Tensor, Tensor] | None = None
        self._used = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new columns; return all columns in use, as views."""
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
        columns = slice(start if is_reading else 0, stop)
        keys, values = (space[rows, :, columns] for space in self._space)
        return keys, values

    def repeat(self, row: int, spare: int) -> None:
        """Copy a row's prompt to another row."""
        for space in self._space or ():
            space[spare, :, : self._used] = space[row, :, : self._used]

    def get_seq_length(self) -> int:
        """Return the number of columns in use; 0 during prefill."""
        return 0 if self._block.row is not None else self._used

    def _make(self, like: Tensor) -> Tensor:
        block = self._block
        # Zeros, as the columns before a prompt are masked but unwritten: 0 times NaN is NaN.
        return like.new_zeros(block.rows, like.shape[1], block.length, like.shape[3])
