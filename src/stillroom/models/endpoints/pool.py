"""Load balancing over several endpoints: weights, failover and hedged requests.

The first endpoint of a request is a function of the request alone (weighted rendezvous hashing), so
that repeated runs use the same one at any concurrency. An endpoint that fails as a whole (down,
invalid key, exhausted quota, rate limit) is skipped, and not tried first for a while; errors of the
request itself do not fail over. A completion's ``model`` identifies its endpoint.

Requests without hedging block no thread if the endpoints support ``submit``. Hedged requests block
one, which cancels the slower request.

Sources: Thaler and Ravishankar 1998 (rendezvous hashing); Dean and Barroso 2013, "The Tail at
Scale" (hedged requests).
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial

from stillroom.errors import BackendError
from stillroom.models.choice import ChoiceProbabilities, score_options_by_logprob
from stillroom.models.interfaces import AsyncModel, ConcurrentModel, OnDone, Score, TextModel
from stillroom.models.requests import REFUSAL_CODES, broadcast_sampling, complete_prompts
from stillroom.provenance import digest_json
from stillroom.records import Completion, Prompt, Sampling

__all__ = ["LoadBalancedModel", "PoolEndpoint"]

_POLL_S = 0.1
_COOLDOWN_S = 30.0
_FAILOVER_CODES = {
    "backend.down",
    "backend.timeout",
    "backend.broken",
    "backend.unavailable",
    "backend.rate-limit",
    "backend.unauthorized",
    "backend.quota",
    "backend.not-found",
    "backend.address",
    "backend.malformed",
    "backend.answer",
}
"""Errors that fail over to another endpoint; ``backend.refused`` does not."""
_COOLDOWN_CODES = _FAILOVER_CODES - REFUSAL_CODES


@dataclass(frozen=True, slots=True)
class PoolEndpoint:
    """An endpoint and its weight; with weight 0 it is a fallback."""

    model: TextModel
    weight: float = 1.0


class LoadBalancedModel:
    """TextModel over several endpoints; each request goes to one, and fails over to the next.

    It has ``submit`` if all members have it and hedging is off.
    """

    submit: Callable[[Prompt, Sampling, OnDone], None]
    """See ``AsyncModel``."""

    def __init__(self, members: Sequence[PoolEndpoint], *, hedge_after_s: float = 0.0) -> None:
        """Pool endpoints.

        Args:
            members: Endpoints in order of preference; at least one with a positive weight.
            hedge_after_s: Seconds without an answer after which a second endpoint is asked, too,
                and the first answer is used; 0: never.
        """
        self._members = list(members)
        self._hedge_after_s = hedge_after_s
        self._resting: dict[int, float] = {}
        self._lock = threading.Lock()
        self.asked = [0] * len(self._members)
        """Number of requests sent to each member."""
        first = self._members[0].model
        self.name = first.name
        prints = [[member.model.fingerprint, member.weight] for member in self._members]
        self.fingerprint = f"pool:{digest_json(prints)[:16]}"
        self.context_length = min(member.model.context_length for member in self._members)
        models = [member.model for member in self._members if member.weight > 0]
        self.concurrency = sum(
            model.concurrency if isinstance(model, ConcurrentModel) else 1 for model in models
        )
        submit_methods = [
            member.model.submit for member in self._members if isinstance(member.model, AsyncModel)
        ]
        if len(submit_methods) == len(self._members) and not self._is_hedged:
            self._ways = submit_methods
            self.submit = self._submit

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete all prompts; see ``TextModel.generate``.

        Raises:
            BackendError: If all endpoints fail, or one refuses a prompt; other prompts are
                completed.
        """
        samplings = broadcast_sampling(prompts, sampling)

        def ask(index: int, is_stopped: Callable[[], bool]) -> Completion:
            return self._ask(prompts[index], samplings[index], is_stopped)

        return complete_prompts(
            ask, len(prompts), self.concurrency, self.fingerprint, on_done, is_cancelled
        )

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the completion of the prompt's first endpoint."""
        first = self._members[self._order(prompt, sampling)[0]].model
        return (yield from first.stream(prompt, sampling))

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Score with the first member.

        Raises:
            BackendError: As raised by the member.
        """
        return self._members[0].model.score(prompts, completions)

    def choose(
        self, prompts: Sequence[Prompt], options: Sequence[str]
    ) -> list[ChoiceProbabilities]:
        """Return the probabilities of options by the first member.

        Raises:
            BackendError: If its engine has no log-probabilities.
        """
        return score_options_by_logprob(self._members[0].model, prompts, options)

    def count_tokens(self, text: str) -> int:
        """Count tokens with the first member."""
        return self._members[0].model.count_tokens(text)

    def close(self) -> None:
        """Close all members."""
        for member in self._members:
            member.model.close()

    @property
    def _is_hedged(self) -> bool:
        return self._hedge_after_s > 0 and len(self._members) > 1

    def _submit(self, prompt: Prompt, sampling: Sampling, done: OnDone) -> None:
        """Submit to the first endpoint in order; a failure submits to the next on its thread."""
        waiting = deque(self._order(prompt, sampling))
        errors: list[BackendError] = []

        def ask() -> None:
            index = waiting.popleft()
            self._begin(index)
            self._ways[index](prompt, sampling, partial(take, index))

        def take(index: int, value: Completion | BaseException) -> None:
            self._note(index, value)
            if not isinstance(value, BackendError) or value.code not in _FAILOVER_CODES:
                done(value)
                return
            errors.append(value)
            if not waiting:
                done(self._give_up(errors))
                return
            try:
                ask()
            except BackendError as error:  # closed in the meantime
                done(error)

        ask()

    def _ask(
        self, prompt: Prompt, sampling: Sampling, is_stopped: Callable[[], bool]
    ) -> Completion:
        order = self._order(prompt, sampling)
        if not self._is_hedged:
            return self._ask_in_turn(order, prompt, sampling, is_stopped)
        return self._ask_hedged(order, prompt, sampling, is_stopped)

    def _ask_in_turn(
        self,
        order: Sequence[int],
        prompt: Prompt,
        sampling: Sampling,
        is_stopped: Callable[[], bool],
    ) -> Completion:
        errors: list[BackendError] = []
        for index in order:
            try:
                return self._send(index, prompt, sampling, is_stopped)
            except BackendError as error:
                if error.code not in _FAILOVER_CODES:
                    raise
                errors.append(error)
        raise self._give_up(errors)

    def _ask_hedged(
        self,
        order: Sequence[int],
        prompt: Prompt,
        sampling: Sampling,
        is_stopped: Callable[[], bool],
    ) -> Completion:
        """Ask the first endpoint, after a delay or failure the next; return the first answer."""
        won = threading.Event()

        def is_over() -> bool:
            return won.is_set() or is_stopped()

        pool = ThreadPoolExecutor(len(order), thread_name_prefix="stillroom-hedge")
        waiting = list(order)
        running: set[Future[Completion]] = set()
        errors: list[BackendError] = []
        next_at = 0.0
        try:
            while True:
                now = time.monotonic()
                if waiting and (not running or now >= next_at) and not is_stopped():
                    index = waiting.pop(0)
                    running.add(pool.submit(self._send, index, prompt, sampling, is_over))
                    next_at = now + self._hedge_after_s
                if not running:
                    if is_stopped():
                        return Completion("", "cancelled", model=self.fingerprint)
                    raise self._give_up(errors)
                timeout = max(next_at - time.monotonic(), 0.0) if waiting else _POLL_S
                done, running = wait(running, min(timeout, _POLL_S), FIRST_COMPLETED)
                for future in done:
                    error = future.exception()
                    if error is None:
                        return future.result()
                    if not isinstance(error, BackendError) or error.code not in _FAILOVER_CODES:
                        raise error
                    errors.append(error)
        finally:
            won.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _send(
        self, index: int, prompt: Prompt, sampling: Sampling, is_stopped: Callable[[], bool]
    ) -> Completion:
        self._begin(index)
        try:
            model = self._members[index].model
            (completion,) = model.generate([prompt], [sampling], is_cancelled=is_stopped)
        except BackendError as error:
            self._note(index, error)
            raise
        self._note(index, completion)
        return completion

    def _begin(self, index: int) -> None:
        with self._lock:
            self.asked[index] += 1

    def _note(self, index: int, value: Completion | BaseException) -> None:
        """Start the cooldown of a failed member, or end that of a member that answered."""
        with self._lock:
            if isinstance(value, Completion):
                self._resting.pop(index, None)
            elif isinstance(value, BackendError) and value.code in _COOLDOWN_CODES:
                self._resting[index] = time.monotonic() + _COOLDOWN_S

    def _order(self, prompt: Prompt, sampling: Sampling) -> list[int]:
        """Return the order of members: by weight and request, members in cooldown last."""
        request = digest_json([prompt.to_json(), asdict(sampling)])
        now = time.monotonic()
        with self._lock:
            resting = {index for index, until in self._resting.items() if until > now}
        return sorted(
            range(len(self._members)),
            key=lambda index: (
                index in resting,
                self._members[index].weight <= 0,
                _weighted_distance(request, index, self._members[index].weight),
                index,
            ),
        )

    def _give_up(self, errors: Sequence[BackendError]) -> BackendError:
        if len(self._members) == 1:
            return errors[0]
        return BackendError([problem for error in errors for problem in error.problems])


def _weighted_distance(request: str, index: int, weight: float) -> float:
    """Return the weighted distance of a member from a request; the nearest is first."""
    if weight <= 0:
        return 0.0
    share = (int(digest_json([request, index])[:13], 16) + 1) / (16**13 + 1)
    return -math.log(share) / weight
