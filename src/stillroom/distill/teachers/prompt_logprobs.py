"""Prompt log-probability APIs of inference servers, and detection of the one supported.

``VllmPromptLogprobs`` is vLLM's: ``prompt_logprobs`` in a completions request, keyed by token id,
the first position null, the prompt's own token added where it is not among the likeliest.
``EchoLogprobs`` is the older OpenAI dialect: ``echo`` with ``logprobs``, whose tokens are strings
unless the server writes ``token_id:N``. ``PrefixLogprobs`` is llama.cpp's, which knows neither: the
likeliest next tokens after every prefix, one request a position, each prefix taken from the
server's cache. All send token ids, never text: text would be cut anew, and differently. Knows no
HTTP: it is given ``ask``.

A short text is sent in the tokens of the recipe's tokenizer, first asking for as many tokens a
position as the recipe wants, then for fewer. What is found is kept in the cache's header with the
log-probabilities themselves, so that a server that serves another model under the same name is
noticed when a job goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from stillroom.errors import BackendError, CheckpointError, DataError

__all__ = [
    "PROBE_TEXT",
    "PROMPT_LOGPROB_APIS",
    "EchoLogprobs",
    "EndpointCapabilities",
    "MalformedReply",
    "PostRequest",
    "PrefixLogprobs",
    "PromptLogprobApi",
    "PromptScores",
    "VllmPromptLogprobs",
    "find_prompt_logprob_api",
    "probe_endpoint",
    "tokenizer_mismatch_error",
]


PostRequest = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]


"""POSTs a body to a path and returns the JSON object that comes back."""


_ID_MARK = "token_id:"


_MASS_TOLERANCE = 1e-3  # a log-probability above this is none, rounding allowed


class MalformedReply(ValueError):  # noqa: N818  # what it is, not that it is raised
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
class PromptScores:
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


class PromptLogprobApi(Protocol):
    """One way to ask."""

    name: ClassVar[str]

    def score(
        self, ask: PostRequest, model: str, ids: Sequence[int], places: Sequence[int], k: int
    ) -> PromptScores:
        """Return what the server says of the tokens at ``places`` (each at least 1).

        Args:
            ask: Sends a request.
            model: The model's name there.
            ids: The whole prompt.
            places: Whose log-probabilities are wanted.
            k: How many of the likeliest tokens at each; 0 for the own alone.

        Raises:
            MalformedReply: If the reply is not what the dialect promises.
        """


class VllmPromptLogprobs:
    """vLLM's ``prompt_logprobs``."""

    name: ClassVar[str] = "prompt_logprobs"

    def score(
        self, ask: PostRequest, model: str, ids: Sequence[int], places: Sequence[int], k: int
    ) -> PromptScores:
        """Return what the server says of the tokens at ``places``."""
        body = {**_build_request(model, ids), "prompt_logprobs": k, "top_k": -1}
        reply = ask("/completions", body)
        choice = _first_choice(reply)
        told = choice.get("prompt_logprobs")
        if told is None:
            told = reply.get("prompt_logprobs")
        rows = _list(told, len(ids), "prompt_logprobs")
        _check_ids(choice.get("prompt_token_ids"), ids)
        own, best = [], []
        for place in places:
            row = rows[place]
            if not isinstance(row, Mapping):
                raise MalformedReply("prompt_logprobs has no entry", place)
            spoken = {_id(key, place): _logprob(value, place) for key, value in row.items()}
            own.append(_token_logprobs(spoken, ids[place], place))
            best.append(_select_top_k(spoken, k, place))
        return _build_scores(own, best, k, reply, ids)


class EchoLogprobs:
    """``echo`` with ``logprobs``, as OpenAI's completions had it."""

    name: ClassVar[str] = "echo"

    def score(
        self, ask: PostRequest, model: str, ids: Sequence[int], places: Sequence[int], k: int
    ) -> PromptScores:
        """Return what the server says of the tokens at ``places``."""
        body = {
            **_build_request(model, ids),
            "echo": True,
            "logprobs": max(k, 1),
            "return_tokens_as_token_ids": True,
        }
        reply = ask("/completions", body)
        told = _first_choice(reply).get("logprobs")
        if not isinstance(told, Mapping):
            raise MalformedReply("the reply holds no logprobs")
        # One token is generated, as many servers refuse none; it stands after the prompt's.
        own_at = _list(told.get("token_logprobs"), len(ids), "token_logprobs", most=1)
        tokens = _list(told.get("tokens"), len(ids), "tokens", most=1)
        _check_ids(_parse_marked_ids(tokens[: len(ids)]), ids)
        own = [_logprob(own_at[place], place) for place in places]
        best: list[tuple[list[int], list[float]]] = [([], [])] * len(places)
        if k:
            rows = _list(told.get("top_logprobs"), len(ids), "top_logprobs", most=1)
            best = [_select_top_k(_index_by_id(rows[place], place), k, place) for place in places]
        return _build_scores(own, best, k, reply, ids)


class PrefixLogprobs:
    """The likeliest next tokens after each prefix, as llama.cpp's server tells them."""

    name: ClassVar[str] = "steps"

    def score(
        self, ask: PostRequest, model: str, ids: Sequence[int], places: Sequence[int], k: int
    ) -> PromptScores:
        """Return what the server says of the tokens at ``places``, one request each."""
        own, best, tokens = [], [], 0
        for place in places:
            spoken = self._after(ask, model, ids[:place], max(k, 1), place)
            tokens += place
            best.append(_select_top_k(spoken, k, place))
            if ids[place] not in spoken:  # as improbable as it is, it has a probability
                spoken = self._after(ask, model, ids[:place], _ALL_POSITIONS, place)
            own.append(_token_logprobs(spoken, ids[place], place))
        return _build_scores(own, best, k, {"usage": {"prompt_tokens": tokens}}, ids)

    def _after(
        self, ask: PostRequest, model: str, prefix: Sequence[int], k: int, place: int
    ) -> dict[int, float]:
        body = {
            **_build_request(model, prefix),
            "logprobs": k,
            "n_probs": k,
            "cache_prompt": True,
            "post_sampling_probs": False,
        }
        told = _first_choice(ask("/completions", body)).get("logprobs")
        content = told.get("content") if isinstance(told, Mapping) else None
        if not isinstance(content, list) or not content or not isinstance(content[0], Mapping):
            raise MalformedReply("the reply holds no logprobs.content", place)
        rows = content[0].get("top_logprobs")
        if not isinstance(rows, list) or not rows:
            raise MalformedReply("the reply holds no top_logprobs", place)
        spoken = {}
        for row in rows:
            if not isinstance(row, Mapping) or "id" not in row:
                raise MalformedReply("top_logprobs names no token ids", place)
            value = row.get("logprob")
            if value is None and k == _ALL_POSITIONS:
                continue  # minus infinity has no JSON
            spoken[_id(row["id"], place)] = _logprob(value, place)
        return spoken


PROMPT_LOGPROB_APIS: tuple[PromptLogprobApi, ...] = (
    VllmPromptLogprobs(),
    PrefixLogprobs(),
    EchoLogprobs(),
)


"""In the order they are tried: ``echo`` last, which llama.cpp answers with a server's error."""


_ALL_POSITIONS = 1 << 20


def _build_request(model: str, ids: Sequence[int]) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": [int(one) for one in ids],
        "max_tokens": 1,
        "temperature": 1.0,
        "top_p": 1.0,
    }


def _first_choice(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise MalformedReply("the reply does not hold one choice")
    return choices[0]


def _list(value: object, size: int, name: str, *, most: int = 0) -> list[Any]:
    """Return a list of the prompt's length (and up to ``most`` more), refusing others."""
    if not isinstance(value, list):
        raise MalformedReply(f"the reply holds no {name}")
    if not size <= len(value) <= size + most:
        raise MalformedReply(f"{name} has {len(value)} entries for {size} tokens", kind="tokenizer")
    return value


def _check_ids(told: object, ids: Sequence[int]) -> None:
    """Refuse a server that has read other tokens than were sent, where it says which it read."""
    if told is not None and told != list(ids):
        raise MalformedReply("the server read other tokens than were sent", kind="tokenizer")


def _parse_marked_ids(tokens: Sequence[Any]) -> list[int] | None:
    """Return ids of tokens written as ``token_id:N``; None where they are strings of text."""
    if not all(isinstance(token, str) and token.startswith(_ID_MARK) for token in tokens):
        return None
    return [_id(token, at) for at, token in enumerate(tokens)]


def _index_by_id(row: object, place: int) -> dict[int, float]:
    if not isinstance(row, Mapping):
        raise MalformedReply("top_logprobs has no entry", place)
    if not all(isinstance(key, str) and key.startswith(_ID_MARK) for key in row):
        raise MalformedReply("top_logprobs names tokens by text, not by id", place, "strings")
    return {_id(key, place): _logprob(value, place) for key, value in row.items()}


def _id(key: object, place: int) -> int:
    try:
        return int(str(key).removeprefix(_ID_MARK))
    except ValueError:
        raise MalformedReply(f"{key!r:.40} is no token id", place) from None


def _logprob(value: object, place: int) -> float:
    found = value.get("logprob") if isinstance(value, Mapping) else value
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise MalformedReply(f"{found!r:.40} is no log-probability", place)
    if not math.isfinite(found) or found > _MASS_TOLERANCE:
        raise MalformedReply(f"a log-probability is {found}", place, "number")
    return min(float(found), 0.0)


def _token_logprobs(spoken: Mapping[int, float], token: int, place: int) -> float:
    if token not in spoken:
        raise MalformedReply(f"the prompt's own token {token} is not told", place, "tokenizer")
    return spoken[token]


def _select_top_k(spoken: Mapping[int, float], k: int, place: int) -> tuple[list[int], list[float]]:
    """Return the k likeliest; the prompt's own token, added though less likely, falls out."""
    if len(spoken) < k:
        raise MalformedReply(f"{len(spoken)} of {k} likeliest tokens are told", place, "fewer")
    chosen = sorted(spoken, key=lambda token: (-spoken[token], token))[:k]
    return chosen, [spoken[token] for token in chosen]


def _build_scores(
    own: list[float],
    best: list[tuple[list[int], list[float]]],
    k: int,
    reply: Mapping[str, Any],
    ids: Sequence[int],
) -> PromptScores:
    usage = reply.get("usage")
    counted = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    shape = (len(own), k)
    return PromptScores(
        np.asarray(own, dtype=np.float64),
        np.asarray([row for row, _ in best], dtype=np.int64).reshape(shape),
        np.asarray([row for _, row in best], dtype=np.float64).reshape(shape),
        counted if isinstance(counted, int) else len(ids),
    )


PROBE_TEXT = "Water boils at 100 degrees. In 1847 the mill ground 320 sacks of corn, and"


_UNSUPPORTED_CODES = {
    "backend.refused",
    "backend.not-found",
    "backend.unavailable",
    "backend.malformed",
}


_MAX_DIFFERENCE_NATS = (
    0.1  # two runs of one model on one server differ by less, batching and bf16 included
)


@dataclass(frozen=True, slots=True)
class EndpointCapabilities:
    """What a server was found to do.

    Args:
        dialect: The name of one of ``PROMPT_LOGPROB_APIS``.
        granted: Tokens a position that it tells; 0 where it tells the prompt's own tokens alone.
        own: Log-probabilities of the probe's own tokens, its first aside.
    """

    dialect: str
    granted: int
    own: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "own": [round(value, 4) for value in self.own]}

    def check_same(self, kept: object, where: str) -> None:
        """Refuse a server that does not say what it said when a cache was begun.

        Args:
            kept: What ``to_json`` gave then.
            where: The cache.

        Raises:
            DataError: If a probability of the probe has moved.
        """
        before = kept.get("own") if isinstance(kept, dict) else None
        if not isinstance(before, list) or len(before) != len(self.own):
            return
        moved = float(np.abs(np.asarray(before) - np.asarray(self.own)).max(initial=0.0))
        if moved > _MAX_DIFFERENCE_NATS:
            raise DataError(
                f"the server no longer says what it said when the cache was begun: a "
                f"log-probability moved by {moved:.2f} nats",
                code="distill.server-changed",
                where=where,
                expected=f"the same model under the same name, within {_MAX_DIFFERENCE_NATS} nats",
                next="give this job another targets.cache, or serve the model that it began with",
            )


def find_prompt_logprob_api(name: str) -> PromptLogprobApi:
    """Return a dialect by its name."""
    return next(dialect for dialect in PROMPT_LOGPROB_APIS if dialect.name == name)


def probe_endpoint(
    ask: PostRequest, address: str, model: str, ids: Sequence[int], wanted: int
) -> EndpointCapabilities:
    """Find the first dialect that a server speaks, and the most tokens it grants up to a number.

    Args:
        ask: Sends a request; a refusal costs no retries.
        address: For messages.
        model: The model's name there.
        ids: ``PROBE_TEXT`` in the tokens of the tokenizer that the recipe names.
        wanted: Tokens a position that the recipe asks for.

    Raises:
        BackendError: If the server tells no log-probabilities of a prompt, or cannot be reached.
        CheckpointError: If its model has another tokenizer.
    """
    reasons = []
    for dialect in PROMPT_LOGPROB_APIS:
        found = _try_api(ask, dialect, model, ids, wanted)
        if isinstance(found, EndpointCapabilities):
            return found
        if isinstance(found, MalformedReply) and found.kind == "tokenizer":
            raise tokenizer_mismatch_error(address, model, str(found))
        reasons.append(f"{dialect.name}: {found!s:.120}")
    raise BackendError(
        f"{address} tells no log-probabilities of a prompt ({'; '.join(reasons)})",
        code="distill.server-logprobs",
        where="teacher.endpoint",
        expected="prompt_logprobs (vLLM), echo with logprobs, or logprobs with token ids "
        "(llama.cpp)",
        next="learn from text that the server writes instead: leave teacher.tokenizer out, add "
        "sequence, and set method: {name: forward_kl, kd_weight: 0, ce_weight: 1}",
    )


def tokenizer_mismatch_error(address: str, model: str, what: str) -> CheckpointError:
    """Return the error for a server whose model cuts text by another vocabulary."""
    return CheckpointError(
        f"{address}: {what}",
        code="distill.server-tokenizer",
        where="teacher.tokenizer",
        expected=f"the tokenizer of the model '{model}' that the server runs",
        next="name that model's own checkpoint or tokenizer folder as teacher.tokenizer",
    )


def _try_api(
    ask: PostRequest, dialect: PromptLogprobApi, model: str, ids: Sequence[int], wanted: int
) -> EndpointCapabilities | Exception:
    """Return what a dialect gives, or why it gives nothing.

    What is wanted is asked for first, then every number by halves, down to the own tokens alone.
    """
    first = _score_probe(ask, dialect, model, ids, wanted)
    if isinstance(first, EndpointCapabilities) or not _may_give_less(first):
        return first
    best = _score_probe(ask, dialect, model, ids, 0)
    if not isinstance(best, EndpointCapabilities):
        return best
    low, high = 0, wanted  # granted; not granted
    while high - low > 1:
        k = (low + high) // 2
        found = _score_probe(ask, dialect, model, ids, k)
        if isinstance(found, EndpointCapabilities):
            low, best = k, found
        else:
            high = k
    return best


def _may_give_less(problem: Exception) -> bool:
    return not isinstance(problem, MalformedReply) or problem.kind in {"fewer", "strings"}


def _score_probe(
    ask: PostRequest, dialect: PromptLogprobApi, model: str, ids: Sequence[int], k: int
) -> EndpointCapabilities | Exception:
    try:
        scores = dialect.score(ask, model, ids, list(range(1, len(ids))), k)
    except MalformedReply as problem:
        return problem
    except BackendError as error:
        if error.code not in _UNSUPPORTED_CODES:
            raise
        return error
    return EndpointCapabilities(dialect.name, k, tuple(scores.own.tolist()))
