"""Finding out once what a server tells of a prompt: by which dialect, and how many tokens.

A short text is sent in the tokens of the recipe's tokenizer, first asking for as many tokens a
position as the recipe wants, then for fewer. What is found is kept in the cache's header with the
log-probabilities themselves, so that a server that serves another model under the same name is
noticed when a job goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stillroom.distill.endpoint_dialects import DIALECTS, Ask, Dialect, UnfitReply
from stillroom.errors import BackendError, CheckpointError, DataError

__all__ = ["PROBE_TEXT", "Probe", "dialect_of", "other_tokenizer", "probe_server"]

PROBE_TEXT = "Water boils at 100 degrees. In 1847 the mill ground 320 sacks of corn, and"

_PASSES = {"backend.refused", "backend.not-found", "backend.unavailable", "backend.malformed"}
_SAME_NATS = 0.1  # two runs of one model on one server differ by less, batching and bf16 included


@dataclass(frozen=True, slots=True)
class Probe:
    """What a server was found to do.

    Args:
        dialect: The name of one of ``DIALECTS``.
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
        if moved > _SAME_NATS:
            raise DataError(
                f"the server no longer says what it said when the cache was begun: a "
                f"log-probability moved by {moved:.2f} nats",
                code="distill.server-changed",
                where=where,
                expected=f"the same model under the same name, within {_SAME_NATS} nats",
                next="give this job another targets.cache, or serve the model that it began with",
            )


def dialect_of(name: str) -> Dialect:
    """Return a dialect by its name."""
    return next(dialect for dialect in DIALECTS if dialect.name == name)


def probe_server(ask: Ask, address: str, model: str, ids: Sequence[int], wanted: int) -> Probe:
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
    for dialect in DIALECTS:
        found = _try(ask, dialect, model, ids, wanted)
        if isinstance(found, Probe):
            return found
        if isinstance(found, UnfitReply) and found.kind == "tokenizer":
            raise other_tokenizer(address, model, str(found))
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


def other_tokenizer(address: str, model: str, what: str) -> CheckpointError:
    """Return the error for a server whose model cuts text by another vocabulary."""
    return CheckpointError(
        f"{address}: {what}",
        code="distill.server-tokenizer",
        where="teacher.tokenizer",
        expected=f"the tokenizer of the model '{model}' that the server runs",
        next="name that model's own checkpoint or tokenizer folder as teacher.tokenizer",
    )


def _try(
    ask: Ask, dialect: Dialect, model: str, ids: Sequence[int], wanted: int
) -> Probe | Exception:
    """Return what a dialect gives, or why it gives nothing.

    What is wanted is asked for first, then every number by halves, down to the own tokens alone.
    """
    first = _ask(ask, dialect, model, ids, wanted)
    if isinstance(first, Probe) or not _may_give_less(first):
        return first
    best = _ask(ask, dialect, model, ids, 0)
    if not isinstance(best, Probe):
        return best
    low, high = 0, wanted  # granted; not granted
    while high - low > 1:
        k = (low + high) // 2
        found = _ask(ask, dialect, model, ids, k)
        if isinstance(found, Probe):
            low, best = k, found
        else:
            high = k
    return best


def _may_give_less(problem: Exception) -> bool:
    return not isinstance(problem, UnfitReply) or problem.kind in {"fewer", "strings"}


def _ask(ask: Ask, dialect: Dialect, model: str, ids: Sequence[int], k: int) -> Probe | Exception:
    try:
        scores = dialect.score(ask, model, ids, list(range(1, len(ids))), k)
    except UnfitReply as problem:
        return problem
    except BackendError as error:
        if error.code not in _PASSES:
            raise
        return error
    return Probe(dialect.name, k, tuple(scores.own.tolist()))
