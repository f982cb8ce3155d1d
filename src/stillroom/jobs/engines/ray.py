"""Ray engine: tasks on the nodes of a cluster, with retries of lost workers.

Two modes of execution. If all items are known in advance and all are processed (documents of an
index, files to scan, texts to compare), Ray Data's ``map_batches`` is used, in order. Work that may
end early or is requested step by step (a teacher, filters after it, trials of a search) goes to
actors, block by block and a little ahead: Ray Data would fill its stores with results that are no
longer needed, and each of them costs.

A lost worker's blocks are sent to another worker; results already journaled are not recomputed.
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
from stillroom.recipes.settings import RaySettings

__all__ = ["RayEngine"]

T = TypeVar("T")
U = TypeVar("U")
_LOST_ERRORS = (RayActorError, WorkerCrashedError, ObjectLostError, OutOfMemoryError)
_MAX_TRIES = 4
_MAX_IN_FLIGHT = 256
"""Calls queued at one actor; their concurrency is set by the task."""
_WAIT_S = 120.0
_POLL_S = 0.2
_CONNECT_TIMEOUT_S = 5.0


@dataclass(eq=False)
class _WorkerSlot:
    """An actor, its number of blocks in progress, and whether it responds."""

    actor: Any
    held: int = 0
    returns: Any = None  # a ping that is answered once the actor has restarted


@dataclass(frozen=True)
class _TaskFetcher:
    """Fetches a pickled task from the cluster's store, on the worker, when it is needed."""

    inside: tuple[Any, ...] = field(repr=False)

    def __call__(self) -> bytes:
        return bytes(ray.get(self.inside[0]))


class RayEngine:
    """Executes tasks on a Ray cluster."""

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
        """Return the user's setting or ``default``."""
        return self._settings.block_size or default

    def call(self, work: WorkerTask[T, U], block: Sequence[T]) -> list[U]:
        """Run a block on one worker, and on another if it dies.

        Raises:
            ResourceError: If four workers die of it, or none is left.
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
        """Yield one value for each item, in order, two blocks per worker ahead."""
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
        self._dismiss()  # frees their cores
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
        """Release the workers; leave a joined cluster, shut down one started by this engine."""
        self._dismiss()
        if self._is_ours and ray.is_initialized():
            ray.shutdown()

    def _put(self, work: WorkerTask[Any, Any]) -> tuple[str, Any]:
        """Return a task's digest and its object in the cluster's store."""
        with self._lock:
            if work not in self._works:
                packed = pickle.dumps(work)
                self._works[work] = hashlib.sha256(packed).hexdigest(), ray.put(packed)
            return self._works[work]

    def _take(self) -> _WorkerSlot:
        """Return the least busy worker, waiting until one responds.

        Raises:
            ResourceError: If none responds for two minutes.
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
            max_task_retries=0,  # retry on another worker instead of waiting for this one
            max_concurrency=_MAX_IN_FLIGHT,
            scheduling_strategy="SPREAD",
        )
        actor = maker.remote(*_worker_environment())
        # A pending actor must not get work that running ones could do.
        return _WorkerSlot(actor, returns=_ping(actor))

    def _mourn(self, post: _WorkerSlot, error: Exception) -> None:
        """Mark a worker as lost, once for all of its blocks."""
        with self._lock:
            if post not in self._posts or post.returns is not None:
                return
            post.returns = _ping(post.actor)
            self.lost += 1
        self._tell(f"a worker was lost, its tasks go to others: {_first_line(error)}")

    def _dismiss(self) -> None:
        with self._lock:
            posts, self._posts = self._posts, []
        for post in posts:
            ray.kill(post.actor)


class _DataWorker:
    """Worker class for Ray Data."""

    def __init__(self, work: bytes, threads: int, environment: dict[str, str]) -> None:
        self._hand, self._work = RayWorker(threads, environment), work

    def __call__(self, batch: Any) -> dict[str, list[bytes]]:
        blocks = batch.column("block").to_pylist()
        return {"values": [self._hand.run("", lambda: self._work, item) for item in blocks]}


def _worker_environment() -> tuple[int, dict[str, str]]:
    """Return the settings to copy to workers: torch's threads, and the locations of models.

    Set by the actor itself: a Ray runtime environment would delay workers by seconds.
    """
    try:
        import torch
    except ImportError:  # the task then needs no torch either
        return 0, select_environment(os.environ)
    return torch.get_num_threads(), select_environment(os.environ)


def _count_cores() -> int:
    resources: dict[str, float] = ray.cluster_resources()
    return max(int(resources.get("CPU", 1)), 1)


def _ping(actor: Any) -> Any:
    return actor.ping.options(max_task_retries=-1).remote()


def _is_alive(post: _WorkerSlot) -> bool:
    """Return whether a worker responds; a lost one is checked without waiting."""
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
    """Join the configured cluster, or start one here, with reduced logging.

    Raises:
        ResourceError: If that fails.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # workers are the job itself
    options: dict[str, Any] = {"address": settings.address}
    if settings.address is None:
        cores = settings.num_workers or os.cpu_count()
        options = {"address": "local", "include_dashboard": False, "num_cpus": cores}
    try:
        _check_address(settings.address or "")
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ResourceError(
            f"Ray cannot be used: {_first_line(error)}",
            code="engine.unreachable",
            where=f"engine.ray.address: {settings.address or 'null'}",
            expected="the address of a running cluster of the same Ray and Python, or null",
            next="ray status --address ADDRESS, or leave the address out",
        ) from error


def _check_address(address: str) -> None:
    """Check that the address accepts connections: Ray itself would retry for minutes.

    Raises:
        OSError: If it does not.
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
