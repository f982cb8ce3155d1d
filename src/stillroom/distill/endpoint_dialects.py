"""How servers tell the log-probabilities of a prompt's own tokens: three dialects.

``PromptLogprobs`` is vLLM's: ``prompt_logprobs`` in a completions request, keyed by token id, the
first position null, the prompt's own token added where it is not among the likeliest. ``Echo`` is
the older OpenAI dialect: ``echo`` with ``logprobs``, whose tokens are strings unless the server
writes ``token_id:N``. ``Steps`` is llama.cpp's, which knows neither: the likeliest next tokens
after every prefix, one request a position, each prefix taken from the server's cache. All send
token ids, never text: text would be cut anew, and differently. Knows no HTTP: it is given ``ask``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["DIALECTS", "Ask", "Dialect", "Echo", "PromptLogprobs", "Scores", "Steps", "UnfitReply"]

Ask = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""POSTs a body to a path and returns the JSON object that comes back."""

_ID_MARK = "token_id:"
_ABOVE_ONE = 1e-3  # a log-probability above this is none, rounding allowed


class UnfitReply(ValueError):  # noqa: N818  # what it is, not that it is raised
    """A reply that is not what the dialect promises; says how, and whether the ids are the cause.

    Args:
        what: In words, without the server's name.
        position: The token of the prompt it is about; -1 for the whole reply.
        kind: ``shape``, ``number`` or ``tokenizer``.
    """

    def __init__(self, what: str, position: int = -1, kind: str = "shape") -> None:
        super().__init__(what)
        self.position, self.kind = position, kind


@dataclass(frozen=True, slots=True)
class Scores:
    """What a server says of chosen tokens of one prompt.

    Args:
        own: Log-probability of each token given those before it, (N,), float64.
        ids: The likeliest tokens at its place, best first, (N, k), int64; k is 0 where only the
            own was asked for.
        logprobs: Their log-probabilities, (N, k), float64.
        tokens: Tokens that the server counted for the prompt.
    """

    own: npt.NDArray[np.float64]
    ids: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float64]
    tokens: int


class Dialect(Protocol):
    """One way to ask."""

    name: ClassVar[str]

    def score(
        self, ask: Ask, model: str, ids: Sequence[int], places: Sequence[int], k: int
    ) -> Scores:
        """Return what the server says of the tokens at ``places`` (each at least 1).

        Args:
            ask: Sends a request.
            model: The model's name there.
            ids: The whole prompt.
            places: Whose log-probabilities are wanted.
            k: How many of the likeliest tokens at each; 0 for the own alone.

        Raises:
            UnfitReply: If the reply is not what the dialect promises.
        """


class PromptLogprobs:
    """vLLM's ``prompt_logprobs``."""

    name: ClassVar[str] = "prompt_logprobs"

    def score(
        self, ask: Ask, model: str, ids: Sequence[int], places: Sequence[int], k: int
    ) -> Scores:
        """Return what the server says of the tokens at ``places``."""
        body = {**_body(model, ids), "prompt_logprobs": k, "top_k": -1}
        reply = ask("/completions", body)
        choice = _choice(reply)
        told = choice.get("prompt_logprobs")
        if told is None:
            told = reply.get("prompt_logprobs")
        rows = _list(told, len(ids), "prompt_logprobs")
        _check_ids(choice.get("prompt_token_ids"), ids)
        own, best = [], []
        for place in places:
            row = rows[place]
            if not isinstance(row, Mapping):
                raise UnfitReply("prompt_logprobs has no entry", place)
            spoken = {_id(key, place): _logprob(value, place) for key, value in row.items()}
            own.append(_own(spoken, ids[place], place))
            best.append(_best(spoken, k, place))
        return _scores(own, best, k, reply, ids)


class Echo:
    """``echo`` with ``logprobs``, as OpenAI's completions had it."""

    name: ClassVar[str] = "echo"

    def score(
        self, ask: Ask, model: str, ids: Sequence[int], places: Sequence[int], k: int
    ) -> Scores:
        """Return what the server says of the tokens at ``places``."""
        body = {
            **_body(model, ids),
            "echo": True,
            "logprobs": max(k, 1),
            "return_tokens_as_token_ids": True,
        }
        reply = ask("/completions", body)
        told = _choice(reply).get("logprobs")
        if not isinstance(told, Mapping):
            raise UnfitReply("the reply holds no logprobs")
        # One token is generated, as many servers refuse none; it stands after the prompt's.
        own_at = _list(told.get("token_logprobs"), len(ids), "token_logprobs", most=1)
        tokens = _list(told.get("tokens"), len(ids), "tokens", most=1)
        _check_ids(_marked(tokens[: len(ids)]), ids)
        own = [_logprob(own_at[place], place) for place in places]
        best: list[tuple[list[int], list[float]]] = [([], [])] * len(places)
        if k:
            rows = _list(told.get("top_logprobs"), len(ids), "top_logprobs", most=1)
            best = [_best(_by_id(rows[place], place), k, place) for place in places]
        return _scores(own, best, k, reply, ids)


class Steps:
    """The likeliest next tokens after each prefix, as llama.cpp's server tells them."""

    name: ClassVar[str] = "steps"

    def score(
        self, ask: Ask, model: str, ids: Sequence[int], places: Sequence[int], k: int
    ) -> Scores:
        """Return what the server says of the tokens at ``places``, one request each."""
        own, best, tokens = [], [], 0
        for place in places:
            spoken = self._after(ask, model, ids[:place], max(k, 1), place)
            tokens += place
            best.append(_best(spoken, k, place))
            if ids[place] not in spoken:  # as improbable as it is, it has a probability
                spoken = self._after(ask, model, ids[:place], _ALL, place)
            own.append(_own(spoken, ids[place], place))
        return _scores(own, best, k, {"usage": {"prompt_tokens": tokens}}, ids)

    def _after(
        self, ask: Ask, model: str, prefix: Sequence[int], k: int, place: int
    ) -> dict[int, float]:
        body = {
            **_body(model, prefix),
            "logprobs": k,
            "n_probs": k,
            "cache_prompt": True,
            "post_sampling_probs": False,
        }
        told = _choice(ask("/completions", body)).get("logprobs")
        content = told.get("content") if isinstance(told, Mapping) else None
        if not isinstance(content, list) or not content or not isinstance(content[0], Mapping):
            raise UnfitReply("the reply holds no logprobs.content", place)
        rows = content[0].get("top_logprobs")
        if not isinstance(rows, list) or not rows:
            raise UnfitReply("the reply holds no top_logprobs", place)
        spoken = {}
        for row in rows:
            if not isinstance(row, Mapping) or "id" not in row:
                raise UnfitReply("top_logprobs names no token ids", place)
            value = row.get("logprob")
            if value is None and k == _ALL:
                continue  # minus infinity has no JSON
            spoken[_id(row["id"], place)] = _logprob(value, place)
        return spoken


DIALECTS: tuple[Dialect, ...] = (PromptLogprobs(), Steps(), Echo())
"""In the order they are tried: ``echo`` last, which llama.cpp answers with a server's error."""

_ALL = 1 << 20


def _body(model: str, ids: Sequence[int]) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": [int(one) for one in ids],
        "max_tokens": 1,
        "temperature": 1.0,
        "top_p": 1.0,
    }


def _choice(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise UnfitReply("the reply does not hold one choice")
    return choices[0]


def _list(value: object, size: int, name: str, *, most: int = 0) -> list[Any]:
    """Return a list of the prompt's length (and up to ``most`` more), refusing others."""
    if not isinstance(value, list):
        raise UnfitReply(f"the reply holds no {name}")
    if not size <= len(value) <= size + most:
        raise UnfitReply(f"{name} has {len(value)} entries for {size} tokens", kind="tokenizer")
    return value


def _check_ids(told: object, ids: Sequence[int]) -> None:
    """Refuse a server that has read other tokens than were sent, where it says which it read."""
    if told is not None and told != list(ids):
        raise UnfitReply("the server read other tokens than were sent", kind="tokenizer")


def _marked(tokens: Sequence[Any]) -> list[int] | None:
    """Return ids of tokens written as ``token_id:N``; None where they are strings of text."""
    if not all(isinstance(token, str) and token.startswith(_ID_MARK) for token in tokens):
        return None
    return [_id(token, at) for at, token in enumerate(tokens)]


def _by_id(row: object, place: int) -> dict[int, float]:
    if not isinstance(row, Mapping):
        raise UnfitReply("top_logprobs has no entry", place)
    if not all(isinstance(key, str) and key.startswith(_ID_MARK) for key in row):
        raise UnfitReply("top_logprobs names tokens by text, not by id", place, "strings")
    return {_id(key, place): _logprob(value, place) for key, value in row.items()}


def _id(key: object, place: int) -> int:
    try:
        return int(str(key).removeprefix(_ID_MARK))
    except ValueError:
        raise UnfitReply(f"{key!r:.40} is no token id", place) from None


def _logprob(value: object, place: int) -> float:
    found = value.get("logprob") if isinstance(value, Mapping) else value
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise UnfitReply(f"{found!r:.40} is no log-probability", place)
    if not math.isfinite(found) or found > _ABOVE_ONE:
        raise UnfitReply(f"a log-probability is {found}", place, "number")
    return min(float(found), 0.0)


def _own(spoken: Mapping[int, float], token: int, place: int) -> float:
    if token not in spoken:
        raise UnfitReply(f"the prompt's own token {token} is not told", place, "tokenizer")
    return spoken[token]


def _best(spoken: Mapping[int, float], k: int, place: int) -> tuple[list[int], list[float]]:
    """Return the k likeliest; the prompt's own token, added though less likely, falls out."""
    if len(spoken) < k:
        raise UnfitReply(f"{len(spoken)} of {k} likeliest tokens are told", place, "fewer")
    chosen = sorted(spoken, key=lambda token: (-spoken[token], token))[:k]
    return chosen, [spoken[token] for token in chosen]


def _scores(
    own: list[float],
    best: list[tuple[list[int], list[float]]],
    k: int,
    reply: Mapping[str, Any],
    ids: Sequence[int],
) -> Scores:
    usage = reply.get("usage")
    counted = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    shape = (len(own), k)
    return Scores(
        np.asarray(own, dtype=np.float64),
        np.asarray([row for row, _ in best], dtype=np.int64).reshape(shape),
        np.asarray([row for _, row in best], dtype=np.float64).reshape(shape),
        counted if isinstance(counted, int) else len(ids),
    )
