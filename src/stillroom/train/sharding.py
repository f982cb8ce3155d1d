"""A model in parts: each rank keeps a share of weights, gradients and optimizer moments (FSDP2).

Source: Zhao et al. 2023, arXiv:2304.11277; here by torch's ``fully_shard``. Each transformer layer
is gathered while it is computed; embeddings, final norm and head (and modules beside the model, as
projectors are) stay whole from the forward pass to the backward pass of a micro-batch, so that a
loss that takes the head apart finds all of it. Every rank must run as many micro-batches as every
other: gathering is done by all together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from stillroom.errors import ResourceError
from stillroom.train.lora import plain_model, whole

__all__ = ["Shards", "like_parameter", "shard_modules", "whole_state"]


class Shards(nn.Module):
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


def shard_modules(modules: Sequence[nn.Module], ranks: int) -> Shards:
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
        raise _cannot("torch 2.6 or newer", f"torch {torch.__version__}") from error
    if device.type not in {"cpu", "cuda"}:
        raise _cannot("a model on cpu or cuda", f"a model on {device.type}")
    mesh = init_device_mesh(device.type, (ranks,))
    for layer in _layers(modules[0]):
        fully_shard(layer, mesh=mesh)
    root = Shards(modules)
    fully_shard(root, mesh=mesh)
    return root


def like_parameter(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor in the form of a parameter: this rank's share where it is sharded."""
    if not hasattr(parameter, "full_tensor") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded = cast("Any", parameter)
    return distribute_tensor(value.to(parameter.device), sharded.device_mesh, sharded.placements)


def whole_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state with whole tensors; called on every rank where any is sharded."""
    values = {
        number: {
            name: whole(value) if isinstance(value, Tensor) else value
            for name, value in moments.items()
        }
        for number, moments in state["state"].items()
    }
    return {**state, "state": values}


def _layers(model: nn.Module) -> Iterable[nn.Module]:
    """Return the modules that a Hugging Face model says must not be split; else none."""
    names = set(getattr(plain_model(model), "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _cannot(expected: str, found: str) -> ResourceError:
    return ResourceError(
        f"train.sharding fsdp cannot be used with {found}",
        code="train.sharding",
        where="train.sharding",
        expected=expected,
        next="set train.sharding: none",
    )
