"""Load balancing over several endpoints: weights, failover and hedged requests.

Which endpoint a request goes to first follows from the request alone (weighted rendezvous hashing),
so that a repeated run asks the same one, however much is asked at once. An endpoint that fails as a
whole (down, refused key, spent quota, over its rate) is passed over, and not asked first again for
a while; what only this request did wrong is not asked of others. Whose answer it is stands in the
completion's ``model``.

Of requests that are not hedged none keeps a thread waiting where the endpoints need none. A hedged
one does: the request that comes second is broken off by who waits for it.

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
from stillroom.models.interfaces import AsyncModel, ConcurrentModel, Score, TextModel
from stillroom.models.requests import broadcast_sampling, run_in_threads
from stillroom.provenance import digest_json
from stillroom.records import Completion, Prompt, Sampling

__all__ = ["LoadBalancedModel", "PoolEndpoint"]

OnDone = Callable[[Completion | BaseException], None]
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
"""Errors after which another endpoint is asked; ``backend.refused`` is the request's own."""
_REQUEST_CODES = {"backend.refused", "backend.malformed", "backend.answer"}
_COOLDOWN_CODES = _FAILOVER_CODES - _REQUEST_CODES


@dataclass(frozen=True, slots=True)
class PoolEndpoint:
    """One endpoint and its share of the requests; 0 is asked only when others fail."""

    model: TextModel
    weight: float = 1.0


class LoadBalancedModel:
    """A TextModel over several; each request goes to one, and on to the next if that one fails.

    It has ``submit`` where all members have it and nothing is hedged.
    """

    submit: Callable[[Prompt, Sampling, OnDone], None]
    """See ``SubmittingModel``."""

    def __init__(self, members: Sequence[PoolEndpoint], *, hedge_after_s: float = 0.0) -> None:
        """Pool members.

        Args:
            members: In order of preference; at least one with a weight above 0.
            hedge_after_s: Ask a second one too when the first has not answered after so long, and
                take whichever comes first; 0 never does.
        """
        self._members = list(members)
        self._hedge_after_s = hedge_after_s
        self._resting: dict[int, float] = {}
        self._lock = threading.Lock()
        self.asked = [0] * len(self._members)
        """How many requests each member was sent."""
        first = self._members[0].model
        self.name = first.name
        prints = [[one.model.fingerprint, one.weight] for one in self._members]
        self.fingerprint = f"pool:{digest_json(prints)[:16]}"
        self.context_length = min(one.model.context_length for one in self._members)
        self.concurrency = sum(
            _concurrency_of(one.model) for one in self._members if one.weight > 0
        )
        ways = [one.model.submit for one in self._members if isinstance(one.model, AsyncModel)]
        if len(ways) == len(self._members) and not self._is_hedged:
            self._ways = ways
            self.submit = self._submit

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete every prompt; see ``TextModel.generate``.

        Raises:
            BackendError: If every endpoint fails, or refuses a prompt; the others are done then.
        """
        samplings = broadcast_sampling(prompts, sampling)
        failed: dict[int, BackendError] = {}

        def ask(index: int, is_stopped: Callable[[], bool]) -> Completion:
            try:
                return self._ask(prompts[index], samplings[index], is_stopped)
            except BackendError as error:
                if error.code not in _REQUEST_CODES:
                    raise
                with self._lock:
                    failed[index] = error
            return Completion("", "cancelled", model=self.fingerprint)

        completions = run_in_threads(
            ask, len(prompts), self.concurrency, self.fingerprint, on_done, is_cancelled
        )
        if failed:
            raise BackendError([failed[index].problems[0] for index in sorted(failed)])
        return completions

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the completion of the endpoint that comes first for the prompt."""
        first = self._members[self._order(prompt, sampling)[0]].model
        return (yield from first.stream(prompt, sampling))

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Score with the first member.

        Raises:
            BackendError: As that one does.
        """
        return self._members[0].model.score(prompts, completions)

    def choose(
        self, prompts: Sequence[Prompt], options: Sequence[str]
    ) -> list[ChoiceProbabilities]:
        """Weigh options with the first member.

        Raises:
            BackendError: If its engine tells no chances.
        """
        return score_options_by_logprob(self._members[0].model, prompts, options)

    def count_tokens(self, text: str) -> int:
        """Count with the first member."""
        return self._members[0].model.count_tokens(text)

    def close(self) -> None:
        """Close every member."""
        for member in self._members:
            member.model.close()

    @property
    def _is_hedged(self) -> bool:
        return self._hedge_after_s > 0 and len(self._members) > 1

    def _submit(self, prompt: Prompt, sampling: Sampling, done: OnDone) -> None:
        """Ask the first in order; where one fails, its thread asks the next."""
        waiting = deque(self._order(prompt, sampling))
        errors: list[BackendError] = []

        def ask() -> None:
            at = waiting.popleft()
            self._begin(at)
            self._ways[at](prompt, sampling, partial(take, at))

        def take(at: int, value: Completion | BaseException) -> None:
            self._note(at, value)
            if not isinstance(value, BackendError) or value.code not in _FAILOVER_CODES:
                done(value)
                return
            errors.append(value)
            if not waiting:
                done(self._give_up(errors))
                return
            try:
                ask()
            except BackendError as error:  # it was closed meanwhile
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
        for at in order:
            try:
                return self._send(at, prompt, sampling, is_stopped)
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
        """Ask the first; after a while, or when it fails, the next too; take what comes first."""
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
                    at = waiting.pop(0)
                    running.add(pool.submit(self._send, at, prompt, sampling, is_over))
                    next_at = now + self._hedge_after_s
                if not running:
                    if is_stopped():
                        return Completion("", "cancelled", model=self.fingerprint)
                    raise self._give_up(errors)
                left = max(next_at - time.monotonic(), 0.0) if waiting else _POLL_S
                done, running = wait(running, min(left, _POLL_S), FIRST_COMPLETED)
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
        self, at: int, prompt: Prompt, sampling: Sampling, is_stopped: Callable[[], bool]
    ) -> Completion:
        self._begin(at)
        try:
            model = self._members[at].model
            (completion,) = model.generate([prompt], [sampling], is_cancelled=is_stopped)
        except BackendError as error:
            self._note(at, error)
            raise
        self._note(at, completion)
        return completion

    def _begin(self, at: int) -> None:
        with self._lock:
            self.asked[at] += 1

    def _note(self, at: int, value: Completion | BaseException) -> None:
        """Let a member rest that failed as a whole, and no longer where it has answered."""
        with self._lock:
            if isinstance(value, Completion):
                self._resting.pop(at, None)
            elif isinstance(value, BackendError) and value.code in _COOLDOWN_CODES:
                self._resting[at] = time.monotonic() + _COOLDOWN_S

    def _order(self, prompt: Prompt, sampling: Sampling) -> list[int]:
        """Return in which order members are asked: by weight and the request, the resting last."""
        request = digest_json([prompt.to_json(), asdict(sampling)])
        now = time.monotonic()
        with self._lock:
            resting = {at for at, until in self._resting.items() if until > now}
        return sorted(
            range(len(self._members)),
            key=lambda at: (
                at in resting,
                self._members[at].weight <= 0,
                _weighted_distance(request, at, self._members[at].weight),
                at,
            ),
        )

    def _give_up(self, errors: Sequence[BackendError]) -> BackendError:
        if len(self._members) == 1:
            return errors[0]
        return BackendError([problem for error in errors for problem in error.problems])


def _weighted_distance(request: str, at: int, weight: float) -> float:
    """Return how far a member is from a request; the nearest has it, in proportion to weights."""
    if weight <= 0:
        return 0.0
    share = (int(digest_json([request, at])[:13], 16) + 1) / (16**13 + 1)
    return -math.log(share) / weight


def _concurrency_of(model: TextModel) -> int:
    return model.concurrency if isinstance(model, ConcurrentModel) else 1
