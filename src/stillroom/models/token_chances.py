"""Chances of given answers by a server's likeliest first tokens (OpenAI's ``top_logprobs``).

A token counts for the option that it is, white space aside; of options with several tokens, the
first must tell them apart. Mass on other tokens is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stillroom.errors import BackendError
from stillroom.models.choosing import Chosen
from stillroom.models.parallel import work_through
from stillroom.records import Completion, Prompt

if TYPE_CHECKING:
    from stillroom.models.endpoint import Endpoint

__all__ = ["choose_by_tokens"]

_TOP = 20


def choose_by_tokens(
    endpoint: Endpoint,
    name: str,
    prompts: Sequence[Prompt],
    options: Sequence[str],
    workers: int,
) -> list[Chosen]:
    """Ask for one token of every prompt, and read how likely each option was.

    Raises:
        BackendError: If the endpoint fails; ``backend.no-score`` if it tells no chances.
    """
    found: list[Chosen] = [Chosen(None)] * len(prompts)

    def ask(index: int, is_stopped: Callable[[], bool]) -> Completion:
        prompt = prompts[index]
        messages = [message.to_json() for message in prompt.messages]
        body: dict[str, Any] = {
            "model": name,
            "messages": messages,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": True,
            "top_logprobs": _TOP,
        }
        if not prompt.messages:
            body["messages"] = [{"role": "user", "content": prompt.text + prompt.prefix}]
        try:
            answer = endpoint.ask("/chat/completions", body, is_stopped)
        except BackendError as error:
            if error.code == "backend.refused":  # most likely the request for chances
                raise _no_chances(endpoint) from error
            raise
        found[index] = _read(endpoint, answer, options)
        return Completion("", model=name)

    work_through(ask, len(prompts), workers, name)
    return found


def _read(endpoint: Endpoint, answer: dict[str, Any], options: Sequence[str]) -> Chosen:
    usage = answer.get("usage") or {}
    try:
        tokens = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(one["token"]).strip(), float(one["logprob"])) for one in tokens]
        counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _no_chances(endpoint) from error
    masses = [math.fsum(math.exp(p) for token, p in pairs if _is(token, o)) for o in options]
    total = math.fsum(masses)
    if not total:
        return Chosen(None, "logprob", *counts)
    return Chosen(tuple(mass / total for mass in masses), "logprob", *counts)


def _is(token: str, option: str) -> bool:
    """Say whether a first token is an option, or the beginning of a longer word of it."""
    return token == option or (len(token) > 1 and token.isalpha() and option.startswith(token))


def _no_chances(endpoint: Endpoint) -> BackendError:
    return BackendError(
        f"{endpoint.address} tells no chances of tokens",
        code="backend.no-score",
        expected="choices[0].logprobs.content[0].top_logprobs",
        next="nothing: answers are drawn instead",
    )
