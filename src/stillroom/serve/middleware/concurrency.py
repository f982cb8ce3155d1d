"""Concurrency limits: a fair request queue (429), worker slots with timeout, LRU of resources.

``FairQueue`` is the backpressure: a request that finds it full, or waits too long, is refused with
429 and Retry-After. The request that has waited longest is next; API keys take turns. Runs on one
event loop.

``WorkerSlots`` runs blocking work in threads, behind such a queue. A slot is released when its
thread has ended, not when its client has disconnected, so that an engine never runs more than its
limit. Streams that run at once are batched by ``models.local.batch_scheduler``.

``ResourceLRU`` closes no resource in use, and opens one that two threads request at once only once.
Knows nothing of the resources.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    aclosing,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fastapi import Request

from stillroom.errors import ResourceError
from stillroom.serve.access import RequestLimits
from stillroom.serve.errors import ApiError, client_disconnected, server_stopping, to_api_error
from stillroom.serve.middleware.auth import CLIENT_KEY, RECEIVED_KEY
from stillroom.serve.middleware.metrics import TIMING_KEY, RequestTiming

__all__ = [
    "FairQueue",
    "IsStopped",
    "ResourceLRU",
    "UploadPlace",
    "Work",
    "WorkerSlots",
    "get_single_result",
    "run_while_connected",
]

ResultT = TypeVar("ResultT")
_DISCONNECT_POLL_S = 0.2
_QUEUE_POLL_S = 0.5
_PACE_S = 5.0
"""Time of an upload before its pace is judged."""


class UploadPlace:
    """Place of a request whose body is arriving."""

    def __init__(self, request: Request) -> None:
        """Take a place for the running task."""
        self.client = request.scope.get(CLIENT_KEY, 0)
        self.begun = time.monotonic()
        self.is_reading, self.is_displaced = True, False
        self._scope, self._task = request.scope, asyncio.current_task()

    def measure_pace(self, now: float) -> float:
        """Return the bytes per second that have arrived."""
        return float(self._scope.get(RECEIVED_KEY, 0)) / (now - self.begun)

    def displace(self) -> None:
        """End the upload."""
        self.is_displaced = True
        if self._task is not None:
            self._task.cancel()


class FairQueue:
    """Queue with a limit of concurrent holders, in which clients take turns."""

    def __init__(
        self, limits: RequestLimits, running: int, *, most_waiting: int | None = None
    ) -> None:
        """Create an empty queue.

        ``running`` is the number of concurrent holders; ``most_waiting`` overrides the length in
        ``limits``.
        """
        self.running, self.limits = running, limits
        self.most_waiting = limits.waiting if most_waiting is None else most_waiting
        self.closes_at = math.inf
        """Time on the monotonic clock after which nobody enters: the server stops."""
        self._free, self._waiting = running, 0
        self._places: set[UploadPlace] = set()
        self._turns: OrderedDict[object, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, request: Request) -> AsyncIterator[UploadPlace]:
        """Reserve a place until the body ends, before a request's body is read.

        Where all places are taken, the slowest upload gives way: of the client with most of them,
        and not before it had time to show its pace. So slow clients are served while there is room,
        and those that trickle keep nobody out.

        Raises:
            ApiError: If all places are taken, or the place was given to another request.
        """
        if len(self._places) >= self.running + self.most_waiting:
            self._displace_slowest()
        place = UploadPlace(request)
        self._places.add(place)
        try:
            yield place
        except asyncio.CancelledError:
            if not place.is_displaced:
                raise
            raise ApiError(
                408,
                "the upload was the slowest of many, and gave its place to another; retry later",
                code="body_too_slow",
                headers={"Retry-After": str(self.limits.retry_after_s)},
            ) from None
        finally:
            self._places.discard(place)

    def _displace_slowest(self) -> None:
        now = time.monotonic()
        counts = Counter(place.client for place in self._places)
        slow = [place for place in self._places if place.is_reading and now > place.begun + _PACE_S]
        if not slow:
            raise self._make_full_error(len(self._places) - self.running)
        slowest = max(slow, key=lambda place: (counts[place.client], -place.measure_pace(now)))
        slowest.displace()
        self._places.discard(slowest)

    @asynccontextmanager
    async def turn(self, request: Request) -> AsyncIterator[None]:
        """Wait for a turn, and hold it until the body ends.

        Raises:
            ApiError: If the queue is full, the wait is too long, or the client disconnects.
        """
        await self.enter(request)
        try:
            yield
        finally:
            self.leave()

    async def enter(self, request: Request) -> None:
        """Wait for a turn; the holder must call ``leave``.

        Raises:
            ApiError: If the queue is full, the wait is too long, the server stops, or the client
                disconnects.
        """
        if time.monotonic() > self.closes_at:
            raise server_stopping()
        clock: RequestTiming = request.scope.get(TIMING_KEY) or RequestTiming()
        if self._free:
            self._free -= 1
            clock.add_wait(0.0)
            return
        if self._waiting >= self.most_waiting:
            raise self._make_full_error(self._waiting)
        client = request.scope.get(CLIENT_KEY, 0)
        turn = self._enqueue(client)
        begun, has_turn = time.monotonic(), False
        end = begun + self.limits.wait_s
        try:
            while True:
                await asyncio.wait({turn}, timeout=_QUEUE_POLL_S)
                if await _is_disconnected(request):
                    raise client_disconnected()
                if time.monotonic() > self.closes_at:
                    raise server_stopping()
                if turn.done():
                    has_turn = True
                    return
                if time.monotonic() > end:
                    raise self._make_full_error(self._waiting)
        finally:
            clock.add_wait(time.monotonic() - begun)
            if not has_turn:
                self._abandon(client, turn)

    def leave(self) -> None:
        """Give the turn to the next client in the queue, if any."""
        if self._turns:
            client, turns = self._turns.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._turns[client] = turns
            self._waiting -= 1
            turn.set_result(None)
            return
        self._free += 1

    def _enqueue(self, client: object) -> asyncio.Future[None]:
        """Join the queue; the returned future is done when the turn comes."""
        turn = asyncio.get_running_loop().create_future()
        self._turns.setdefault(client, deque()).append(turn)
        self._waiting += 1
        return turn

    def _abandon(self, client: object, turn: asyncio.Future[None]) -> None:
        """Leave the queue; a turn that was just given goes to the next in the queue."""
        if turn.done():
            self.leave()
            return
        self._waiting -= 1
        self._turns[client].remove(turn)
        if not self._turns[client]:
            del self._turns[client]

    def _make_full_error(self, waiting: int) -> ApiError:
        return ApiError(
            429,
            f"{self.running} running and {waiting} waiting; retry later",
            code="too_many_requests",
            headers={"Retry-After": str(self.limits.retry_after_s)},
        )


async def run_while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await a coroutine; cancel it, and wait for its end, when the client disconnects.

    Raises:
        ApiError: If the client disconnects.
    """
    task = asyncio.ensure_future(work)
    try:
        while True:
            await asyncio.wait({task}, timeout=_DISCONNECT_POLL_S)
            if task.done():
                return task.result()
            if await _is_disconnected(request):
                raise client_disconnected()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _is_disconnected(request: Request) -> bool:
    """Return whether the client has gone; a cancellation that the check swallows is raised again.

    Raises:
        CancelledError: If the running task was cancelled while Starlette looked.
    """
    is_gone = await request.is_disconnected()
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return is_gone


ItemT = TypeVar("ItemT")
IsStopped = Callable[[], bool]
Work = Callable[[IsStopped], Iterator[ItemT]]
"""Blocking generator that checks between items whether it should stop."""
_POLL_S = 0.2


class WorkerSlots:
    """Slots in which blocking work runs in threads, with a queue."""

    def __init__(self, limits: RequestLimits, concurrency: int = 1) -> None:
        """Create the slots; they belong to the event loop that first uses them."""
        self.limits = limits
        self._queue = FairQueue(limits, limits.running or concurrency)

    def end_by(self, moment: float) -> None:
        """End running work at a time on the monotonic clock, and start none after it."""
        self._queue.closes_at = moment

    async def stream(self, work: Work[ItemT], request: Request) -> AsyncIterator[ItemT]:
        """Yield the items of the work; stop it on disconnect or timeout.

        Raises:
            ApiError: If the queue is full, the time is over, or the work fails.
        """
        clock: RequestTiming = request.scope.get(TIMING_KEY) or RequestTiming()
        await self._queue.enter(request)
        run = _WorkerRun[ItemT](asyncio.get_running_loop(), self._queue.leave, clock)
        try:
            run.start(work)
        except BaseException:  # no thread can be started, so none leaves the queue
            self._queue.leave()
            raise
        end = time.monotonic() + self.limits.timeout_s
        stop_polling = run.start_polling()
        try:
            while True:
                await run.woken.wait()
                run.woken.clear()
                while run.items:
                    item = run.items.popleft()
                    if item is _END_OF_ITEMS:
                        return
                    if isinstance(item, BaseException):
                        raise to_api_error(item) from item
                    yield item
                if run.is_check_due:
                    run.is_check_due = False
                    await self._check(request, end)
        finally:
            stop_polling()
            run.stop.set()

    async def _check(self, request: Request, end: float) -> None:
        """Raise the error that ends the work of a request, if any."""
        if await _is_disconnected(request):
            raise client_disconnected()
        if time.monotonic() > self._queue.closes_at:
            raise server_stopping()
        if time.monotonic() > end:
            raise ApiError(504, f"no answer within {self.limits.timeout_s:g} s", code="timeout")


async def get_single_result(items: AsyncIterator[ItemT]) -> ItemT:
    """Return the only item when the work has ended, and so released its slot.

    Raises:
        ApiError: If there is none because the client disconnected.
    """
    async with aclosing(items) as opened:  # type: ignore[type-var]  # ours is a generator
        results = [item async for item in opened]
    if not results:
        raise client_disconnected()
    return results[0]


_END_OF_ITEMS = object()


class _WorkerRun(Generic[ItemT]):
    """Work that runs in one thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, release: Callable[[], None], clock: RequestTiming
    ) -> None:
        self.items: deque[Any] = deque()
        self.woken = asyncio.Event()
        self.is_check_due = False
        self._is_waking = False
        self.stop = threading.Event()
        self._loop, self._release, self._clock = loop, release, clock

    def start(self, work: Work[ItemT]) -> None:
        threading.Thread(
            target=self._run, args=(work,), daemon=True, name="stillroom-serve"
        ).start()

    def start_polling(self) -> Callable[[], None]:
        """Wake the reader periodically to check client and clock; return what ends that."""
        timers: list[asyncio.TimerHandle] = []

        def poll() -> None:
            self.is_check_due = True
            self.woken.set()
            timers[:] = [self._loop.call_later(_POLL_S, poll)]

        timers.append(self._loop.call_later(_POLL_S, poll))
        return lambda: timers[0].cancel()

    def _run(self, work: Work[ItemT]) -> None:
        begun, ends = time.perf_counter(), list[object]([_END_OF_ITEMS])
        try:
            items = work(self.stop.is_set)
            try:
                for item in items:
                    if self.stop.is_set():
                        break
                    self._put(item)
            finally:
                close = getattr(items, "close", None)
                if close is not None:
                    close()
        except BaseException as error:  # noqa: BLE001  # raised again in the request's task
            ends.insert(0, error)
        finally:
            self._clock.engine_s += time.perf_counter() - begun
            # Before the end or error is told: a loop that ends with its only request would not run
            # it later.
            self._call_in_loop(self._release)
            for end in ends:
                self._put(end)

    def _put(self, item: object) -> None:
        self.items.append(item)
        if not self._is_waking:  # the reader is woken later and finds this item as well
            self._is_waking = True
            self._call_in_loop(self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        self.woken.set()

    def _call_in_loop(self, call: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: nobody reads, but the slot is released
            self.stop.set()
            if call is self._release:
                self._release()


KeyT = TypeVar("KeyT", bound=Hashable)
ResourceT = TypeVar("ResourceT")


@dataclass
class _Resource(Generic[ResourceT]):
    """Resource that is open or being opened; both count toward the limit."""

    closing: ExitStack = field(default_factory=ExitStack)
    value: ResourceT | None = None
    is_open: bool = False
    users: int = 0


class ResourceLRU(Generic[KeyT, ResourceT]):
    """LRU cache of open resources by key, at most ``most`` at once; thread-safe."""

    def __init__(self, most: int, noun: str, *, patience_s: float = 0.0) -> None:
        """Create an empty cache.

        ``noun`` names the resources in errors, in the plural; ``patience_s`` is how long to wait
        for an idle one when all are in use.
        """
        self.most, self.noun, self.patience_s = most, noun, patience_s
        self._held: OrderedDict[KeyT, _Resource[ResourceT]] = OrderedDict()
        self._changed = threading.Condition()

    @contextmanager
    def use(
        self, key: KeyT, open_: Callable[[], AbstractContextManager[ResourceT]]
    ) -> Iterator[ResourceT]:
        """Keep the resource of a key open until the body ends; blocks while it is opened.

        Raises:
            ResourceError: If the limit is reached and all are in use.
        """
        held = self._take(key, open_)
        try:
            yield held.value  # type: ignore[misc]  # it is open
        finally:
            self._give_back(key, held)

    def close(self) -> None:
        """Close idle resources now, and those in use when they are released."""
        with self._changed:
            idle = [entry for entry in self._held.values() if entry.is_open and not entry.users]
            self._held.clear()
        for entry in idle:
            entry.closing.close()

    def _take(
        self, key: KeyT, open_: Callable[[], AbstractContextManager[ResourceT]]
    ) -> _Resource[ResourceT]:
        end = time.monotonic() + self.patience_s
        with self._changed:
            while True:
                held = self._held.get(key)
                if held is not None and held.is_open:
                    self._held.move_to_end(key)
                    held.users += 1
                    return held
                if held is not None:
                    self._changed.wait()  # another thread is opening it
                    continue
                idle = self._pop_idle()
                if idle is not None or len(self._held) < self.most:
                    break
                self._wait(end)
            held = self._held[key] = _Resource(users=1)
        try:
            if idle is not None:
                idle.closing.close()  # before opening: there may be no memory for both
            held.value = held.closing.enter_context(open_())
        except BaseException:
            held.closing.close()
            with self._changed:
                if self._held.get(key) is held:
                    del self._held[key]
                self._changed.notify_all()
            raise
        with self._changed:
            held.is_open = True
            self._changed.notify_all()
        return held

    def _pop_idle(self) -> _Resource[ResourceT] | None:
        """Remove the least recently used idle resource, if the limit requires it."""
        if len(self._held) >= self.most:
            for key, entry in self._held.items():
                if entry.is_open and not entry.users:
                    return self._held.pop(key)
        return None

    def _wait(self, end: float) -> None:
        """Wait for a change, up to the time limit."""
        remaining_s = end - time.monotonic()
        if remaining_s <= 0:
            raise ResourceError(
                f"{self.most} {self.noun} are open, and all are in use",
                code="resource.busy",
                expected="an idle one that can be closed",
                next="wait until one is released, or stop one",
            )
        self._changed.wait(remaining_s)

    def _give_back(self, key: KeyT, held: _Resource[ResourceT]) -> None:
        with self._changed:
            held.users -= 1
            is_kept = self._held.get(key) is held
            self._changed.notify_all()
        if not is_kept and not held.users:
            held.closing.close()
