"""Several processes as one: which rank this is, sums over all, one decision for all.

Goes through accelerate, and only where the environment says that there is more than one process;
a single process needs nothing installed. Gradients are summed, not averaged: the loss has been
divided by the number of positions of all ranks before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from stillroom.errors import MissingExtraError

__all__ = ["Ranks", "leave"]

T = TypeVar("T")
_BUCKET_NUMBERS = 1 << 24


class Ranks:
    """The group of processes of this run; one process is a group too."""

    def __init__(self) -> None:
        """Join the group that the launcher's environment describes.

        Raises:
            MissingExtraError: If there are several processes and accelerate is missing.
        """
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self._state: Any = None
        self.rank = int(os.environ.get("RANK", "0")) if self.count > 1 else 0
        if self.count > 1:
            try:
                import accelerate
            except ImportError as error:
                raise MissingExtraError.of(
                    "accelerate", "train", "training in several processes"
                ) from error
            self._state = accelerate.PartialState(cpu=not torch.cuda.is_available())

    def __enter__(self) -> Ranks:
        """Be a group within the body."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Leave the group; where all goes well, together."""
        if self.count == 1:
            return
        if kind is None:
            self.wait()
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
        torch.distributed.all_gather_object(found, value)
        return found

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all ranks, in buckets."""
        if self.count == 1:
            return
        bucket: list[Tensor] = []
        size = 0
        for parameter in parameters:
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
        told = [str(path)]
        torch.distributed.broadcast_object_list(told, src=0)
        return Path(told[0])

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.count > 1:
            torch.distributed.barrier()

    def _sum_bucket(self, bucket: list[Tensor]) -> None:
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        torch.distributed.all_reduce(flat)
        start = 0
        for gradient in bucket:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()


def leave(code: int) -> NoReturn:
    """End a process that was a rank, without taking the interpreter apart.

    A worker thread of gloo may still hold a tensor of the last sum; where it lets go of it while
    the interpreter ends, the process aborts and its exit code is lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
