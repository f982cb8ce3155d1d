"""Distributed training: data-parallel process group with reductions, and sharding by FSDP2.

Uses accelerate, and only if the environment describes more than one process; a single process needs
no extra dependency. Gradients are summed, not averaged, because the loss has already been divided
by the number of positions of all ranks. Objects and barriers use a separate gloo group with a
timeout of 30 days: the main rank may capture teacher logits for days while the others wait.

Source: Zhao et al. 2023, arXiv:2304.11277; implemented with torch's ``fully_shard``. Each
transformer layer is gathered while it is computed. Embeddings, final norm, head and auxiliary
modules (projectors) stay gathered from the forward to the backward pass of a micro-batch, because a
chunked loss reads the full head. Gathering is collective, so every rank must run the same number of
micro-batches.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn

from stillroom.errors import BackendError, MissingExtraError, ResourceError, StillroomError
from stillroom.jobs.preflight import count_processes, get_process_rank
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
_BUCKET_ELEMENTS = 1 << 24
_TIMEOUT = timedelta(days=30)


class ProcessGroup:
    """Process group of a run; also represents a single process."""

    def __init__(self, *, alone: bool = False) -> None:
        """Join the group described by the launcher's environment, or reuse one already joined.

        Args:
            alone: Form a group of one, regardless of the environment.

        Raises:
            MissingExtraError: If there are several processes and accelerate is missing.
        """
        self.count = 1 if alone else count_processes()
        self._is_guest = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._state: Any = None
        self._gloo: Any = None
        self.rank = 0 if alone else get_process_rank()
        if self.count > 1:
            try:
                import accelerate
            except ImportError as error:
                raise MissingExtraError.of(
                    "accelerate", "train", "training in several processes"
                ) from error
            self._state = accelerate.PartialState(cpu=not torch.cuda.is_available())
            self._gloo = torch.distributed.new_group(backend="gloo", timeout=_TIMEOUT)

    def __enter__(self) -> ProcessGroup:
        """Return the group."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """Leave the group, after a barrier if no exception was raised."""
        if self.count == 1:
            return
        if kind is None:
            self.wait()
        if self._is_guest:  # the code that initialized the group destroys it
            return
        torch.distributed.destroy_process_group()
        self._state._reset_state()  # a later run of this process can initialize a group again

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and metrics."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in order of rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value, group=self._gloo)
        return values

    def agree(self, work: Callable[[], T]) -> T:
        """Return ``work()``; the error of the first failed rank is raised on every rank."""
        result, failure = None, None
        try:
            result = work()
        except StillroomError as error:
            failure = error
        first = next((error for error in self.gather(failure) if error is not None), None)
        if first is not None:
            self.wait()  # no rank leaves while another still reads from it
            raise first
        return cast("T", result)

    def on_main(self, work: Callable[[], T]) -> T:
        """Call a function on the main rank and return its result on every rank.

        The other ranks wait without a practical time limit. An error of the main rank is raised on
        every rank.

        Args:
            work: Function whose result can be pickled; it may run for hours.

        Raises:
            BackendError: On the other ranks, if the main rank raises something other than a
                ``StillroomError``.
        """
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        caught: Exception | None = None
        if self.is_main:
            try:
                outcome[0] = work()
            except Exception as error:  # noqa: BLE001 - raised again below, after the broadcast
                caught = error
                outcome[1] = error if isinstance(error, StillroomError) else _group_error(error)
        torch.distributed.broadcast_object_list(outcome, src=0, group=self._gloo)
        if outcome[1] is not None:
            self.wait()  # no rank leaves while another still reads from it
            raise caught or outcome[1]
        return cast("T", outcome[0])

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all ranks, in buckets.

        A parameter without a gradient on every rank keeps none, so the optimizer skips it as in a
        single process.
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
            if size >= _BUCKET_ELEMENTS:
                self._sum_bucket(bucket)
                bucket, size = [], 0
        if bucket:
            self._sum_bucket(bucket)

    def share_path(self, path: Path) -> Path:
        """Return the main rank's path on every rank."""
        return self.on_main(lambda: path)

    def wait(self) -> None:
        """Block until every rank has reached this point."""
        if self.count > 1:
            torch.distributed.barrier(group=self._gloo)

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
        next="read the error of the main process",
    )


def exit_process(code: int) -> NoReturn:
    """Exit a rank's process without finalizing the interpreter.

    A gloo worker thread may still hold a tensor of the last reduction; releasing it during
    interpreter shutdown aborts the process and loses its exit code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class ShardedModule(nn.Module):
    """All trained modules as one module whose forward pass is an arbitrary function of them."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Wrap modules that are called directly by the function passed to ``forward``."""
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        """Return ``run()``, computed with the weights outside of layers gathered."""
        return run()

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather the weights outside of layers within the body, for reading without a graph.

        Collective: every rank must enter equally often, and only after the first step.
        """
        module = cast("Any", self)
        module.unshard()
        try:
            yield
        finally:
            module.reshard()


def shard_modules(modules: Sequence[nn.Module], ranks: int) -> ShardedModule:
    """Shard the parameters of modules over all ranks, in place.

    Args:
        modules: The model first; its transformer layers are gathered one at a time.
        ranks: Number of ranks.

    Raises:
        ResourceError: If this torch version or the model's device does not support sharding.
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
    # The modules whose class a Hugging Face model lists in ``_no_split_modules``.
    model = modules[0]
    names = set(getattr(unwrap_model(model), "_no_split_modules", None) or ())
    for layer in [module for module in model.modules() if type(module).__name__ in names]:
        fully_shard(layer, mesh=mesh)
    root = ShardedModule(modules)
    fully_shard(root, mesh=mesh)
    return root


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a full tensor in the layout of a parameter: this rank's shard if it is sharded."""
    if not hasattr(parameter, "full_tensor") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded = cast("Any", parameter)
    return distribute_tensor(value.to(parameter.device), sharded.device_mesh, sharded.placements)


def gather_optimizer_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state with full tensors; collective if any is sharded."""
    values = {
        number: {
            name: gather_tensor(value) if isinstance(value, Tensor) else value
            for name, value in moments.items()
        }
        for number, moments in state["state"].items()
    }
    return {**state, "state": values}


def _sharding_error(expected: str, actual: str) -> ResourceError:
    return ResourceError(
        f"train.sharding fsdp cannot be used with {actual}",
        code="train.sharding",
        where="train.sharding",
        expected=expected,
        next="set train.sharding: none",
    )
