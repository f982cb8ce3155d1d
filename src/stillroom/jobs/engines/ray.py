"""Ray engine: tasks on the nodes of a cluster, with retries of lost workers.

Two ways, as the work is. What is all known beforehand and all done (documents of an index, files
to be scanned, texts to be compared) goes through Ray Data's ``map_batches``, in order. What may
end early or is asked for as answers come (a teacher, filters behind one, trials of a search) goes
to actors a block at a time, a little ahead: Ray Data would fill its stores with answers that nobody
wants any more, and each of them is paid for.

A worker that dies costs the blocks it had in hand: they go to another, and what was given back and
journaled before is not done again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from stillroom.errors import MissingExtraError, ResourceError
from stillroom.jobs.engines.interfaces import WorkerTask, iter_batches, map_prefetched
from stillroom.jobs.engines.worker import RayWorker, select_environment, unpack_results
from stillroom.recipes.engine import RaySettings

__all__ = ["RayEngine"]

T = TypeVar("T")
U = TypeVar("U")

_LOST_ERRORS = (RayActorError, WorkerCrashedError, ObjectLostError, OutOfMemoryError)
_MAX_TRIES = 4
_MAX_IN_FLIGHT = 256
"""Calls that wait at one actor; how many are at work is the work's own affair."""
_WAIT_S = 120.0
_POLL_S = 0.2
_CONNECT_TIMEOUT_S = 5.0


@dataclass(eq=False)
class _WorkerSlot:
    """An actor, how many blocks it has in hand, and whether it answers."""

    actor: Any
    held: int = 0
    returns: Any = None  # of a ping that is answered once the actor has come back


@dataclass(frozen=True)
class _TaskFetcher:
    """Gets a pickled work out of the cluster's store, on the worker, when it is needed."""

    inside: tuple[Any, ...] = field(repr=False)

    def __call__(self) -> bytes:
        return bytes(ray.get(self.inside[0]))


class RayEngine:
    """Work on a Ray cluster."""

    name = "ray"
    is_remote = True

    def __init__(self, settings: RaySettings, tell: Callable[[str], None]) -> None:
        """Join the cluster, or start one on this machine.

        Raises:
            ResourceError: If the cluster cannot be reached.
        """
        self._settings, self._tell = settings, tell
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _join_cluster(settings)
        self.num_workers = settings.num_workers or _count_cores()
        self.lost = 0
        self._posts: list[_WorkerSlot] = []
        self._works: dict[Any, tuple[str, Any]] = {}
        self._lock = threading.Lock()

    def choose_block_size(self, default: int) -> int:
        """Return what the user said, or what fits the work."""
        return self._settings.block_size or default

    def call(self, work: WorkerTask[T, U], block: Sequence[T]) -> list[U]:
        """Have one worker do a block; another where it dies.

        Raises:
            ResourceError: If it dies of four workers, or none is left.
        """
        key, options = self._put(work)
        packed = pickle.dumps(list(block))
        for _ in range(_MAX_TRIES):
            post = self._take()
            try:
                done = ray.get(post.actor.run.remote(key, _TaskFetcher((options,)), packed))
            except _LOST_ERRORS as error:
                self._mourn(post, error)
            else:
                return unpack_results(done)
            finally:
                with self._lock:
                    post.held -= 1
        raise _worker_lost_error(f"{_MAX_TRIES} workers died of the same {len(block)} items")

    def stream(
        self,
        work: WorkerTask[T, U],
        items: Iterable[T],
        *,
        block_size: int = 1,
        pause: Callable[[], None] = lambda: None,
    ) -> Iterator[U]:
        """Yield one value for each item, in order, two blocks a worker ahead of the taker."""
        blocks = iter_batches(items, self.choose_block_size(block_size))
        ahead = map_prefetched(
            partial(self.call, work),
            blocks,
            workers=max(2, self.num_workers * work.concurrency),
            pause=pause,
        )
        for _, values in ahead:
            yield from values

    def map(
        self,
        work: WorkerTask[T, U],
        items: Sequence[T],
        *,
        block_size: int = 1,
        pause: Callable[[], None] = lambda: None,
    ) -> Iterator[U]:
        """Yield one value for each item, in order, by Ray Data.

        Raises:
            MissingExtraError: If Ray is installed without what Ray Data needs.
        """
        try:
            import ray.data
        except ImportError as error:
            raise MissingExtraError.of(error.name or "ray.data", "ray", "engine: ray") from error

        blocks = list(iter_batches(items, self.choose_block_size(block_size)))
        if not blocks:
            return
        self._dismiss()  # their cores are needed
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"block": pickle.dumps(block)} for block in blocks]
        workers = min(self.num_workers, len(rows))
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _DataWorker,
            fn_constructor_args=(pickle.dumps(work), *_worker_environment()),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=self._settings.num_gpus or None,
        )
        try:
            for row in done.iter_rows():
                pause()
                yield from unpack_results(row["values"])
        except RayError as error:
            raise _worker_lost_error(f"Ray gave up: {_first_line(error)}") from error

    def close(self) -> None:
        """Give the workers back; leave a cluster that this engine joined, end one it started."""
        self._dismiss()
        if self._is_ours and ray.is_initialized():
            ray.shutdown()

    def _put(self, work: WorkerTask[Any, Any]) -> tuple[str, Any]:
        """Return a work's digest and its place in the cluster's store."""
        with self._lock:
            if work not in self._works:
                packed = pickle.dumps(work)
                self._works[work] = hashlib.sha256(packed).hexdigest(), ray.put(packed)
            return self._works[work]

    def _take(self) -> _WorkerSlot:
        """Return the worker that has least in hand, waiting where none answers.

        Raises:
            ResourceError: If none does for two minutes.
        """
        until = time.monotonic() + _WAIT_S
        while True:
            with self._lock:
                if not self._posts:
                    self._posts = [self._begin() for _ in range(self.num_workers)]
                standing = [post for post in self._posts if _is_alive(post)]
                if standing:
                    post = min(standing, key=lambda worker: worker.held)
                    post.held += 1
                    return post
            if time.monotonic() > until:
                raise _worker_lost_error(
                    f"no worker of {len(self._posts)} has answered for {_WAIT_S} s"
                )
            time.sleep(_POLL_S)

    def _begin(self) -> _WorkerSlot:
        maker = ray.remote(RayWorker).options(
            num_cpus=1,
            num_gpus=self._settings.num_gpus or None,
            max_restarts=-1,
            max_task_retries=0,  # a block goes to another worker instead of waiting for this one
            max_concurrency=_MAX_IN_FLIGHT,
            scheduling_strategy="SPREAD",
        )
        actor = maker.remote(*_worker_environment())
        # An actor that is not placed yet must not be given work that others could do now.
        return _WorkerSlot(actor, returns=_ping(actor))

    def _mourn(self, post: _WorkerSlot, error: Exception) -> None:
        """Note that a worker is gone, once for all that it had in hand."""
        with self._lock:
            if post not in self._posts or post.returns is not None:
                return
            post.returns = _ping(post.actor)
            self.lost += 1
        self._tell(f"a worker was lost, its tasks go to others: {_first_line(error)}")

    def _dismiss(self) -> None:
        """End the actors."""
        with self._lock:
            posts, self._posts = self._posts, []
        for post in posts:
            ray.kill(post.actor)


class _DataWorker:
    """A hand as Ray Data wants it."""

    def __init__(self, work: bytes, threads: int, environment: dict[str, str]) -> None:
        self._hand, self._work = RayWorker(threads, environment), work

    def __call__(self, batch: Any) -> dict[str, list[bytes]]:
        blocks = batch.column("block").to_pylist()
        return {"values": [self._hand.run("", lambda: self._work, item) for item in blocks]}


def _worker_environment() -> tuple[int, dict[str, str]]:
    """Return what a worker is to find as it is here: threads of torch, and where models lie.

    By the actor itself: an environment that Ray sets up would keep workers waiting for seconds.
    """
    try:
        import torch
    except ImportError:  # the work then needs no torch either
        return 0, select_environment(os.environ)
    return torch.get_num_threads(), select_environment(os.environ)


def _count_cores() -> int:
    resources: dict[str, float] = ray.cluster_resources()
    return max(int(resources.get("CPU", 1)), 1)


def _ping(actor: Any) -> Any:
    return actor.ping.options(max_task_retries=-1).remote()


def _is_alive(post: _WorkerSlot) -> bool:
    """Return whether a worker answers; one that was lost is asked without waiting."""
    if post.returns is None:
        return True
    ready, _ = ray.wait([post.returns], timeout=0)
    if not ready:
        return False
    try:
        ray.get(post.returns)
    except ActorUnschedulableError:
        return False
    except _LOST_ERRORS:
        post.returns = _ping(post.actor)
        return False
    post.returns = None
    return True


def _join_cluster(settings: RaySettings) -> None:
    """Join the cluster of the settings, or start one here, and keep Ray's own talk short.

    Raises:
        ResourceError: If that fails.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # the workers are the job, not beside it
    asked: dict[str, Any] = {"address": settings.address}
    if settings.address is None:
        cores = settings.num_workers or os.cpu_count()
        asked = {"address": "local", "include_dashboard": False, "num_cpus": cores}
    try:
        _check_address(settings.address or "")
        ray.init(**asked, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ResourceError(
            f"Ray cannot be used: {_first_line(error)}",
            code="engine.unreachable",
            where=f"engine.ray.address: {settings.address or 'null'}",
            expected="the address of a running cluster of the same Ray and Python, or null",
            next="ray status --address ADDRESS, or leave the address out",
        ) from error


def _check_address(address: str) -> None:
    """Look whether anything listens at an address: Ray itself would try for minutes.

    Raises:
        OSError: If nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()


def _worker_lost_error(message: str) -> ResourceError:
    return ResourceError(
        message,
        code="engine.worker-lost",
        expected="workers with the memory that the work needs",
        next="lower engine.ray.num_workers or block_size, then run again with --resume",
    )


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{lines[0].strip():.300}" if lines else type(error).__name__
