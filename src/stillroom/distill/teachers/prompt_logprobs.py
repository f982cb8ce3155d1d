"""Prompt log-probability APIs of inference servers, and detection of the supported one.

``VllmPromptLogprobs`` is vLLM's: ``prompt_logprobs`` in a completions request, keyed by token id,
the first position null, the label added if it is not in the top k. ``EchoLogprobs`` is the older
OpenAI dialect: ``echo`` with ``logprobs``, whose tokens are strings unless the server returns
``token_id:N``. ``PrefixLogprobs`` is for llama.cpp, which supports neither: the top next tokens
after every prefix, one request per position, each prefix served from the server's cache. All send
token ids, never text, which would be tokenized again, possibly differently. HTTP is left to the
``ask`` callback.

The probe sends a short text in the recipe's tokenization, first with the recipe's number of top
tokens, then with fewer. Its result is stored in the cache's header with the log-probabilities, so
that a resumed job detects another model served under the same name.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from stillroom.errors import BackendError, CheckpointError, DataError, StillroomError

__all__ = [
    "PROBE_TEXT",
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
"""POSTs a body to a path and returns the JSON object of the reply."""

_ID_MARK = "token_id:"
_MASS_TOLERANCE = 1e-3  # larger values are not log-probabilities, even with rounding


class MalformedReply(ValueError):  # noqa: N818  # names the reply, not the exception
    """A reply that violates the dialect.

    Args:
        what: Description, without the server's name.
        position: Index of the prompt's token; -1 for the whole reply.
        kind: ``shape``, ``number``, ``tokenizer``, ``strings`` or ``fewer``.
    """

    def __init__(self, what: str, position: int = -1, kind: str = "shape") -> None:
        super().__init__(what)
        self.position, self.kind = position, kind


@dataclass(frozen=True, slots=True)
class PromptScores:
    """A server's scores of selected tokens of one prompt.

    Args:
        own: Log-probability of each token given the preceding ones, (N,), float64.
        ids: Top-k tokens at its position, best first, (N, k), int64; k is 0 without top tokens.
        logprobs: Their log-probabilities, (N, k), float64.
        tokens: Number of prompt tokens counted by the server.
    """

    own: npt.NDArray[np.float64]
    ids: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float64]
    tokens: int


class PromptLogprobApi(Protocol):
    """One dialect of prompt log-probabilities."""

    name: ClassVar[str]

    def score(
        self, ask: PostRequest, model: str, ids: Sequence[int], places: Sequence[int], k: int
    ) -> PromptScores:
        """Return the scores of the tokens at ``places`` (each at least 1).

        Args:
            ask: Sends a request.
            model: Name of the model on the server.
            ids: Whole prompt.
            places: Indices of the tokens to score.
            k: Number of top tokens at each; 0 for labels only.

        Raises:
            MalformedReply: If the reply violates the dialect.
        """


class VllmPromptLogprobs:
    """vLLM's ``prompt_logprobs``."""

    name: ClassVar[str] = "prompt_logprobs"

    def score(
        self, ask: PostRequest, model: str, ids: Sequence[int], places: Sequence[int], k: int
    ) -> PromptScores:
        """Return the scores of the tokens at ``places``."""
        body = {**_build_request(model, ids), "prompt_logprobs": k, "top_k": -1}
        reply = ask("/completions", body)
        choice = _first_choice(reply)
        entries = choice.get("prompt_logprobs")
        if entries is None:
            entries = reply.get("prompt_logprobs")
        rows = _list(entries, len(ids), "prompt_logprobs")
        _check_ids(choice.get("prompt_token_ids"), ids)
        label_logprobs, top_tokens = [], []
        for position in places:
            row = rows[position]
            if not isinstance(row, Mapping):
                raise MalformedReply("prompt_logprobs has no entry", position)
            logprobs = {_id(key, position): _logprob(value, position) for key, value in row.items()}
            label_logprobs.append(_token_logprobs(logprobs, ids[position], position))
            top_tokens.append(_select_top_k(logprobs, k, position))
        return _build_scores(label_logprobs, top_tokens, k, reply, ids)


class EchoLogprobs:
    """``echo`` with ``logprobs``, as in OpenAI's completions API."""

    name: ClassVar[str] = "echo"

    def score(
        self, ask: PostRequest, model: str, ids: Sequence[int], places: Sequence[int], k: int
    ) -> PromptScores:
        """Return the scores of the tokens at ``places``."""
        body = {
            **_build_request(model, ids),
            "echo": True,
            "logprobs": max(k, 1),
            "return_tokens_as_token_ids": True,
        }
        reply = ask("/completions", body)
        logprobs = _first_choice(reply).get("logprobs")
        if not isinstance(logprobs, Mapping):
            raise MalformedReply("the reply has no logprobs")
        # One token is generated, as many servers require; it follows the prompt's.
        all_logprobs = _list(logprobs.get("token_logprobs"), len(ids), "token_logprobs", most=1)
        tokens = _list(logprobs.get("tokens"), len(ids), "tokens", most=1)
        _check_ids(_parse_marked_ids(tokens[: len(ids)]), ids)
        label_logprobs = [_logprob(all_logprobs[position], position) for position in places]
        top_tokens: list[tuple[list[int], list[float]]] = [([], [])] * len(places)
        if k:
            rows = _list(logprobs.get("top_logprobs"), len(ids), "top_logprobs", most=1)
            top_tokens = [
                _select_top_k(_index_by_id(rows[position], position), k, position)
                for position in places
            ]
        return _build_scores(label_logprobs, top_tokens, k, reply, ids)


class PrefixLogprobs:
    """Top next tokens after each prefix, as returned by llama.cpp's server."""

    name: ClassVar[str] = "steps"

    def score(
        self, ask: PostRequest, model: str, ids: Sequence[int], places: Sequence[int], k: int
    ) -> PromptScores:
        """Return the scores of the tokens at ``places``, one request each."""
        label_logprobs, top_tokens, tokens = [], [], 0
        for position in places:
            logprobs = self._after(ask, model, ids[:position], max(k, 1), position)
            tokens += position
            top_tokens.append(_select_top_k(logprobs, k, position))
            if ids[position] not in logprobs:  # request the full vocabulary for an unlikely label
                logprobs = self._after(ask, model, ids[:position], _ALL_POSITIONS, position)
            label_logprobs.append(_token_logprobs(logprobs, ids[position], position))
        return _build_scores(
            label_logprobs, top_tokens, k, {"usage": {"prompt_tokens": tokens}}, ids
        )

    def _after(
        self, ask: PostRequest, model: str, prefix: Sequence[int], k: int, position: int
    ) -> dict[int, float]:
        body = {
            **_build_request(model, prefix),
            "logprobs": k,
            "n_probs": k,
            "cache_prompt": True,
            "post_sampling_probs": False,
        }
        entry = _first_choice(ask("/completions", body)).get("logprobs")
        content = entry.get("content") if isinstance(entry, Mapping) else None
        if not isinstance(content, list) or not content or not isinstance(content[0], Mapping):
            raise MalformedReply("the reply has no logprobs.content", position)
        rows = content[0].get("top_logprobs")
        if not isinstance(rows, list) or not rows:
            raise MalformedReply("the reply has no top_logprobs", position)
        logprobs = {}
        for row in rows:
            if not isinstance(row, Mapping) or "id" not in row:
                raise MalformedReply("top_logprobs has no token ids", position)
            value = row.get("logprob")
            if value is None and k == _ALL_POSITIONS:
                continue  # JSON has no minus infinity
            logprobs[_id(row["id"], position)] = _logprob(value, position)
        return logprobs


_PROMPT_LOGPROB_APIS: tuple[PromptLogprobApi, ...] = (
    VllmPromptLogprobs(),
    PrefixLogprobs(),
    EchoLogprobs(),
)
"""In probing order: ``echo`` last, to which llama.cpp replies with a server error."""

_ALL_POSITIONS = 1 << 20


def _build_request(model: str, ids: Sequence[int]) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": [int(token) for token in ids],
        "max_tokens": 1,
        "temperature": 1.0,
        "top_p": 1.0,
    }


def _first_choice(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise MalformedReply("the reply does not have exactly one choice")
    return choices[0]


def _list(value: object, size: int, name: str, *, most: int = 0) -> list[Any]:
    """Return a list with the prompt's length (and up to ``most`` more), or raise."""
    if not isinstance(value, list):
        raise MalformedReply(f"the reply has no {name}")
    if not size <= len(value) <= size + most:
        raise MalformedReply(f"{name} has {len(value)} entries for {size} tokens", kind="tokenizer")
    return value


def _check_ids(reported: object, ids: Sequence[int]) -> None:
    """Raise if the server reports other prompt tokens than were sent."""
    if reported is not None and reported != list(ids):
        raise MalformedReply("the server read other tokens than were sent", kind="tokenizer")


def _parse_marked_ids(tokens: Sequence[Any]) -> list[int] | None:
    """Return ids of tokens written as ``token_id:N``; None if they are text."""
    if not all(isinstance(token, str) and token.startswith(_ID_MARK) for token in tokens):
        return None
    return [_id(token, index) for index, token in enumerate(tokens)]


def _index_by_id(row: object, position: int) -> dict[int, float]:
    if not isinstance(row, Mapping):
        raise MalformedReply("top_logprobs has no entry", position)
    if not all(isinstance(key, str) and key.startswith(_ID_MARK) for key in row):
        raise MalformedReply("top_logprobs has tokens as text, not ids", position, "strings")
    return {_id(key, position): _logprob(value, position) for key, value in row.items()}


def _id(key: object, position: int) -> int:
    try:
        return int(str(key).removeprefix(_ID_MARK))
    except ValueError:
        raise MalformedReply(f"{key!r:.40} is not a token id", position) from None


def _logprob(value: object, position: int) -> float:
    number = value.get("logprob") if isinstance(value, Mapping) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise MalformedReply(f"{number!r:.40} is not a log-probability", position)
    if not math.isfinite(number) or number > _MASS_TOLERANCE:
        raise MalformedReply(f"a log-probability is {number}", position, "number")
    return min(float(number), 0.0)


def _token_logprobs(logprobs: Mapping[int, float], token: int, position: int) -> float:
    if token not in logprobs:
        raise MalformedReply(f"the prompt's token {token} has no score", position, "tokenizer")
    return logprobs[token]


def _select_top_k(
    logprobs: Mapping[int, float], k: int, position: int
) -> tuple[list[int], list[float]]:
    """Return the k most likely tokens, without a label added outside of them."""
    if len(logprobs) < k:
        raise MalformedReply(f"{len(logprobs)} of {k} top tokens were returned", position, "fewer")
    top = sorted(logprobs, key=lambda token: (-logprobs[token], token))[:k]
    return top, [logprobs[token] for token in top]


def _build_scores(
    label_logprobs: list[float],
    top_tokens: list[tuple[list[int], list[float]]],
    k: int,
    reply: Mapping[str, Any],
    ids: Sequence[int],
) -> PromptScores:
    usage = reply.get("usage")
    prompt_tokens = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    shape = (len(label_logprobs), k)
    return PromptScores(
        np.asarray(label_logprobs, dtype=np.float64),
        np.asarray([row for row, _ in top_tokens], dtype=np.int64).reshape(shape),
        np.asarray([row for _, row in top_tokens], dtype=np.float64).reshape(shape),
        prompt_tokens if isinstance(prompt_tokens, int) else len(ids),
    )


PROBE_TEXT = "Water boils at 100 degrees. In 1847 the mill ground 320 sacks of corn, and"

_UNSUPPORTED_CODES = {
    "backend.refused",
    "backend.not-found",
    "backend.unavailable",
    "backend.malformed",
}

_MAX_DIFFERENCE_NATS = 0.1  # above the difference of two runs of one model, with batching and bf16


@dataclass(frozen=True, slots=True)
class EndpointCapabilities:
    """Probed capabilities of a server.

    Args:
        dialect: Name of one of ``_PROMPT_LOGPROB_APIS``.
        granted: Top tokens returned per position; 0 if only labels are scored.
        own: Log-probabilities of the probe's tokens, except the first.
    """

    dialect: str
    granted: int
    own: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "own": [round(value, 4) for value in self.own]}

    def check_same(self, stored: object, where: str) -> None:
        """Reject an endpoint whose outputs have changed since a cache was created.

        Args:
            stored: Output of ``to_json`` at that time.
            where: Folder of the cache.

        Raises:
            DataError: If a log-probability of the probe has changed.
        """
        previous = stored.get("own") if isinstance(stored, dict) else None
        if not isinstance(previous, list) or len(previous) != len(self.own):
            return
        difference = float(np.abs(np.asarray(previous) - np.asarray(self.own)).max(initial=0.0))
        if difference > _MAX_DIFFERENCE_NATS:
            raise DataError(
                f"the server's outputs have changed since the cache was created: a "
                f"log-probability differs by {difference:.2f} nats",
                code="distill.server-changed",
                where=where,
                expected=f"the same model under the same name, within {_MAX_DIFFERENCE_NATS} nats",
                next="set another targets.cache for this job, or serve the original model",
            )


def find_prompt_logprob_api(name: str) -> PromptLogprobApi:
    """Return a dialect by name."""
    return next(dialect for dialect in _PROMPT_LOGPROB_APIS if dialect.name == name)


def probe_endpoint(
    ask: PostRequest, address: str, model: str, ids: Sequence[int], requested: int
) -> EndpointCapabilities:
    """Find the first dialect that a server supports, and the most top tokens it returns.

    Args:
        ask: Sends a request; a refusal is not retried.
        address: Address, for messages.
        model: Name of the model on the server.
        ids: ``PROBE_TEXT`` in the recipe's tokenization.
        requested: Top tokens per position required by the recipe.

    Raises:
        BackendError: If the server returns no prompt log-probabilities, or cannot be reached.
        CheckpointError: If its model has another tokenizer.
    """
    reasons = []
    for dialect in _PROMPT_LOGPROB_APIS:
        result = _try_api(ask, dialect, model, ids, requested)
        if isinstance(result, EndpointCapabilities):
            return result
        if isinstance(result, MalformedReply) and result.kind == "tokenizer":
            raise tokenizer_mismatch_error(address, model, str(result))
        reasons.append(f"{dialect.name}: {_shorten(result)}")
    raise BackendError(
        f"{address} returns no prompt log-probabilities ({'; '.join(reasons)})",
        code="distill.server-logprobs",
        where="teacher.endpoint",
        expected="prompt_logprobs (vLLM), echo with logprobs, or logprobs with token ids "
        "(llama.cpp)",
        next="train on text generated by the server instead: remove teacher.tokenizer, add "
        "sequence, and set method: {name: forward_kl, kd_weight: 0, ce_weight: 1}",
    )


def _shorten(error: object) -> str:
    message = error.problems[0].what if isinstance(error, StillroomError) else str(error)
    return textwrap.shorten(message, 160, placeholder=" ...")


def tokenizer_mismatch_error(address: str, model: str, message: str) -> CheckpointError:
    """Return the error of a server whose model has another tokenizer."""
    return CheckpointError(
        f"{address}: {message}",
        code="distill.server-tokenizer",
        where="teacher.tokenizer",
        expected=f"the tokenizer of the model '{model}' that the server runs",
        next="set teacher.tokenizer to that model's checkpoint or tokenizer folder",
    )


def _try_api(
    ask: PostRequest, dialect: PromptLogprobApi, model: str, ids: Sequence[int], requested: int
) -> EndpointCapabilities | Exception:
    """Return the capabilities with a dialect, or the reason that it is not supported.

    The requested number of top tokens is tried first, then smaller ones by bisection, down to 0.
    """
    first = _score_probe(ask, dialect, model, ids, requested)
    if isinstance(first, EndpointCapabilities) or not _may_give_less(first):
        return first
    best = _score_probe(ask, dialect, model, ids, 0)
    if not isinstance(best, EndpointCapabilities):
        return best
    low, high = 0, requested  # supported; not supported
    while high - low > 1:
        k = (low + high) // 2
        result = _score_probe(ask, dialect, model, ids, k)
        if isinstance(result, EndpointCapabilities):
            low, best = k, result
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
