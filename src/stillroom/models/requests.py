"""What every backend does with a request: match samplings to prompts, cut at stops, check room."""

from __future__ import annotations

from collections.abc import Sequence

from stillroom.errors import BackendError
from stillroom.records import Prompt, Sampling

__all__ = ["check_room", "cut_at_stop", "held_back", "spread_sampling"]


def spread_sampling(
    prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]
) -> list[Sampling]:
    """Return one sampling for each prompt.

    Raises:
        BackendError: If a list of samplings is of another length than the prompts.
    """
    if isinstance(sampling, Sampling):
        return [sampling] * len(prompts)
    if len(sampling) != len(prompts):
        raise BackendError(
            f"{len(prompts)} prompts came with {len(sampling)} samplings",
            code="backend.request",
            expected="one sampling for all, or one for each prompt",
            next="give a single Sampling",
        )
    return list(sampling)


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the earliest stop string, and whether there was one."""
    found = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Return how many last characters may be the beginning of a stop string, so must wait."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest


def check_room(prompt_tokens: int, max_new_tokens: int, context_length: int, name: str) -> int:
    """Return how many tokens may be generated: what was asked, or what the context has left.

    Raises:
        BackendError: If the prompt leaves no room for a single token.
    """
    room = context_length - prompt_tokens
    if room < 1:
        raise BackendError(
            f"the prompt has {prompt_tokens} tokens; {name} reads {context_length}",
            code="backend.context",
            expected=f"at most {context_length - 1} tokens",
            next="shorten the prompt, or raise context_length where the model allows",
        )
    return min(max_new_tokens, room)
