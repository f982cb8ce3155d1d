"""Several processes as one: which rank this is, sums over all, one decision for all.

Goes through accelerate, and only where the environment says that there is more than one process;
a single process needs nothing installed. Gradients are summed, not averaged: the loss has been
divided by the number of positions of all ranks before. What is decided or waited for goes over a
group of its own that has time: the main rank may capture a teacher for days while the others wait.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn

from stillroom.errors import BackendError, MissingExtraError, StillroomError
from stillroom.jobs.processes import count_processes, process_rank

__all__ = ["Ranks", "leave"]

T = TypeVar("T")
_BUCKET_NUMBERS = 1 << 24
_PATIENCE = timedelta(days=30)


class Ranks:
    """The group of processes of this run; one process is a group too."""

    def __init__(self, *, alone: bool = False) -> None:
        """Join the group that the launcher's environment describes, or stay with it if joined.

        Args:
            alone: Be a group of one, whatever the environment says.

        Raises:
            MissingExtraError: If there are several processes and accelerate is missing.
        """
        self.count = 1 if alone else count_processes()
        self._is_guest = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._state: Any = None
        self._talk: Any = None
        self.rank = 0 if alone else process_rank()
        if self.count > 1:
            try:
                import accelerate
            except ImportError as error:
                raise MissingExtraError.of(
                    "accelerate", "train", "training in several processes"
                ) from error
            self._state = accelerate.PartialState(cpu=not torch.cuda.is_available())
            self._talk = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)

    def __enter__(self) -> Ranks:
        """Be a group within the body."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Leave the group; where all goes well, together."""
        if self.count == 1:
            return
        if kind is None:
            self.wait()
        if self._is_guest:  # who joined the group first leaves it
            return
        torch.distributed.destroy_process_group()
        self._state._reset_state()  # so that a later run of this process makes a group again

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and metrics."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in order of rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value, group=self._talk)
        return found

    def share(self, trouble: StillroomError | None) -> None:
        """Raise the first rank's trouble on every rank; return where no rank has any."""
        found = next((error for error in self.gather(trouble) if error is not None), None)
        if found is not None:
            self.wait()  # none leaves while another still reads from it
            raise found

    def on_main(self, work: Callable[[], T]) -> T:
        """Do what one process suffices for on the main rank, and give every rank its result.

        The others wait as long as it takes. What the main rank raises, every rank raises.

        Args:
            work: Its result is pickled; it may take hours.

        Raises:
            BackendError: On the other ranks, where the main rank fails in a way that no error of
                ours tells.
        """
        if self.count == 1:
            return work()
        told: list[Any] = [None, None]
        caught: Exception | None = None
        if self.is_main:
            try:
                told[0] = work()
            except Exception as error:  # noqa: BLE001 - raised again below, once all have been told
                caught = error
                told[1] = error if isinstance(error, StillroomError) else _failed(error)
        torch.distributed.broadcast_object_list(told, src=0, group=self._talk)
        if told[1] is not None:
            self.wait()  # none leaves while another still reads from it
            raise caught or told[1]
        return cast("T", told[0])

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all ranks, in buckets.

        A parameter that no rank has a gradient for keeps none, so that the optimizer passes over it
        as it does in one process.
        """
        if self.count == 1 or not parameters:
            return
        device = parameters[0].device
        used = torch.tensor([value.grad is not None for value in parameters], device=device).int()
        torch.distributed.all_reduce(used)
        bucket: list[Tensor] = []
        size = 0
        for parameter, count in zip(parameters, used.tolist(), strict=True):
            if count == 0:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            size += parameter.grad.numel()
            if size >= _BUCKET_NUMBERS:
                self._sum_bucket(bucket)
                bucket, size = [], 0
        if bucket:
            self._sum_bucket(bucket)

    def share_path(self, path: Path) -> Path:
        """Return the main rank's path on every rank."""
        if self.count == 1:
            return path
        return Path(self.on_main(lambda: str(path)))

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.count > 1:
            torch.distributed.barrier(group=self._talk)

    def _sum_bucket(self, bucket: list[Tensor]) -> None:
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        torch.distributed.all_reduce(flat)
        start = 0
        for gradient in bucket:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()


def _failed(error: Exception) -> BackendError:
    return BackendError(
        f"the main process failed: {type(error).__name__}: {error}",
        code="train.rank-failed",
        expected="every process to reach the end",
        next="read the main process's own error",
    )


def leave(code: int) -> NoReturn:
    """End a process that was a rank, without taking the interpreter apart.

    A worker thread of gloo may still hold a tensor of the last sum; where it lets go of it while
    the interpreter ends, the process aborts and its exit code is lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
