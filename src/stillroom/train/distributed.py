"""Process group with reductions, and sharding of models by FSDP2.

Goes through accelerate, and only where the environment says that there is more than one process;
a single process needs nothing installed. Gradients are summed, not averaged: the loss has been
divided by the number of positions of all ranks before. What is decided or waited for goes over a
group of its own that has time: the main rank may capture a teacher for days while the others wait.

Source: Zhao et al. 2023, arXiv:2304.11277; here by torch's ``fully_shard``. Each transformer layer
is gathered while it is computed; embeddings, final norm and head (and modules beside the model, as
projectors are) stay whole from the forward pass to the backward pass of a micro-batch, so that a
loss that takes the head apart finds all of it. Every rank must run as many micro-batches as every
other: gathering is done by all together.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn

from stillroom.errors import BackendError, MissingExtraError, ResourceError, StillroomError
from stillroom.jobs.machine import count_processes, get_process_rank
from stillroom.train.lora import gather_tensor, unwrap_model

__all__ = [
    "ProcessGroup",
    "ShardedModule",
    "exit_process",
    "gather_optimizer_state",
    "shard_like",
    "shard_modules",
]


T = TypeVar("T")


_BUCKET_NUMBERS = 1 << 24


_TIMEOUT = timedelta(days=30)


class ProcessGroup:
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
        self.rank = 0 if alone else get_process_rank()
        if self.count > 1:
            try:
                import accelerate
            except ImportError as error:
                raise MissingExtraError.of(
                    "accelerate", "train", "training in several processes"
                ) from error
            self._state = accelerate.PartialState(cpu=not torch.cuda.is_available())
            self._talk = torch.distributed.new_group(backend="gloo", timeout=_TIMEOUT)

    def __enter__(self) -> ProcessGroup:
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
                told[1] = error if isinstance(error, StillroomError) else _group_error(error)
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


def _group_error(error: Exception) -> BackendError:
    return BackendError(
        f"the main process failed: {type(error).__name__}: {error}",
        code="train.rank-failed",
        expected="every process to reach the end",
        next="read the main process's own error",
    )


def exit_process(code: int) -> NoReturn:
    """End a process that was a rank, without taking the interpreter apart.

    A worker thread of gloo may still hold a tensor of the last sum; where it lets go of it while
    the interpreter ends, the process aborts and its exit code is lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class ShardedModule(nn.Module):
    """All that is trained, as one module whose forward pass is any function of it."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Stand over modules, which go on to be used directly within ``forward``."""
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        """Return ``run()``, in which the weights outside of layers are whole."""
        return run()

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep the weights outside of layers whole within the body, to read without a graph.

        Every rank must read as often as every other; one step must have been taken before.
        """
        own = cast("Any", self)
        own.unshard()
        try:
            yield
        finally:
            own.reshard()


def shard_modules(modules: Sequence[nn.Module], ranks: int) -> ShardedModule:
    """Split the parameters of modules over all ranks, in place.

    Args:
        modules: The model first; its transformer layers are gathered one at a time.
        ranks: How many there are.

    Raises:
        ResourceError: If this torch cannot shard, or not on the model's device.
    """
    device = next(modules[0].parameters()).device
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise _sharding_error("torch 2.6 or newer", f"torch {torch.__version__}") from error
    if device.type not in {"cpu", "cuda"}:
        raise _sharding_error("a model on cpu or cuda", f"a model on {device.type}")
    mesh = init_device_mesh(device.type, (ranks,))
    for layer in _unsplittable_layers(modules[0]):
        fully_shard(layer, mesh=mesh)
    root = ShardedModule(modules)
    fully_shard(root, mesh=mesh)
    return root


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor in the form of a parameter: this rank's share where it is sharded."""
    if not hasattr(parameter, "full_tensor") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded = cast("Any", parameter)
    return distribute_tensor(value.to(parameter.device), sharded.device_mesh, sharded.placements)


def gather_optimizer_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state with whole tensors; called on every rank where any is sharded."""
    values = {
        number: {
            name: gather_tensor(value) if isinstance(value, Tensor) else value
            for name, value in moments.items()
        }
        for number, moments in state["state"].items()
    }
    return {**state, "state": values}


def _unsplittable_layers(model: nn.Module) -> Iterable[nn.Module]:
    """Return the modules that a Hugging Face model says must not be split; else none."""
    names = set(getattr(unwrap_model(model), "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _sharding_error(expected: str, found: str) -> ResourceError:
    return ResourceError(
        f"train.sharding fsdp cannot be used with {found}",
        code="train.sharding",
        where="train.sharding",
        expected=expected,
        next="set train.sharding: none",
    )
