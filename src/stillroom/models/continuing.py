"""Continuing token ids with a model in memory, nothing of its own settings applied.

For measuring and for rollouts, which need tokens, not text: text that is tokenized anew may come
out as other tokens. Knows ids; prompts as people write them are a backend's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stillroom.models.causal import end_tokens
from stillroom.models.quiet import quiet_transformers

__all__ = ["Continuation", "complete_prompts"]


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model wrote after one prompt: its tokens, the ending one included if it ended."""

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
    """Continue prompts until an end token or a limit, nothing of the model's own settings applied.

    Sampling draws from the whole distribution: a generation_config's top_k, top_p or penalties
    would give another one than the model's.

    Args:
        model: A causal language model; left in the mode it came in.
        tokenizer: Its tokenizer.
        prompts: Token ids, none empty.
        max_new_tokens: Most tokens of a completion.
        temperature: 0 takes the likeliest token.
        seed: Of the draws; the caller's random state is kept.
        batch_size: Prompts continued side by side.
        on_done: Hears how many more are done.

    Returns:
        One Continuation per prompt, in order.
    """
    ends = sorted(end_tokens(model, tokenizer))
    found: dict[int, Continuation] = {}
    order = sorted(range(len(prompts)), key=lambda at: (len(prompts[at]), at))
    was_training = bool(model.training)
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                rows = [prompts[at] for at in chosen]
                written = _generate(model, rows, ends, max_new_tokens, temperature)
                found |= dict(zip(chosen, written, strict=True))
                if on_done:
                    on_done(len(chosen))
    finally:
        model.train(was_training)
    return [found[at] for at in range(len(prompts))]


def _generate(
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
    for at, row in enumerate(rows):  # the mask tells padding, never the ids
        ids[at, width - len(row) :] = torch.tensor(row)
        mask[at, width - len(row) :] = 1
    make: Any = GenerationConfig  # has no types
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    settings = make(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=filler,
        **(drawn if temperature > 0 else {"do_sample": False}),
    )
    device = next(model.parameters()).device
    own, model.generation_config = model.generation_config, settings
    try:
        with quiet_transformers():
            given = model.generate(ids.to(device), attention_mask=mask.to(device))
    finally:
        model.generation_config = own
    return [_cut(row, ends) for row in given[:, width:].tolist()]


def _cut(row: list[int], ends: Sequence[int]) -> Continuation:
    for at, token in enumerate(row):
        if token in ends:
            return Continuation(tuple(row[: at + 1]), has_ended=True)
    return Continuation(tuple(row), has_ended=False)
