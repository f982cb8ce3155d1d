"""Where a merge's heavy arithmetic is done: LAPACK on the processor, or a graphics card.

Elementwise methods stay on the processor: for averages, loading torch costs more than a card could
save below about a billion parameters, and votes and ranks have no version for cards yet
(docs/explanation/merging.md has the sums). What gains are decompositions of matrices, and
mergekit's arithmetic on whole tensors. A card rounds otherwise, so the device is part of the recipe
and never chosen silently; a recipe that asks for one in vain is told so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import numpy as np

from stillroom.errors import ResourceError
from stillroom.merge.method import Array, MergeMethod

__all__ = ["Device", "svd", "svd_by_torch", "tell_unused", "use_device"]

Device: TypeAlias = Literal["cpu", "cuda"]
_used: list[str] = []


def tell_unused(device: str, method: MergeMethod, compat: str) -> list[str]:
    """Return a line that says so where a merge asks for a device that it has no work for."""
    if device == "cpu" or method.decomposes or compat == "mergekit":
        return []
    return [
        f"device {device} has nothing to do here: {method.method_name()} decomposes no matrices, "
        "and its row blocks are combined on the processor; leave 'device' out"
    ]


@contextmanager
def use_device(device: str) -> Iterator[None]:
    """Do heavy arithmetic on a device within the body.

    Raises:
        ResourceError: If there is no such device.
    """
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise ResourceError(
                "there is no CUDA device",
                code="merge.device",
                where="device",
                expected="a graphics card that torch can use, or cpu",
                next="leave 'device' out, or install torch for CUDA",
            )
    _used.append(device)
    try:
        yield
    finally:
        _used.pop()


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """Return the thin singular value decomposition: left, values (largest first), right.

    Raises:
        numpy.linalg.LinAlgError: If LAPACK does not converge.
    """
    if not _used or _used[-1] == "cpu":
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        return left, values, right
    return svd_by_torch(matrix, _used[-1])


def svd_by_torch(matrix: Array, device: str) -> tuple[Array, Array, Array]:
    """Return the decomposition as torch makes it on a device."""
    import torch

    parts = torch.linalg.svd(torch.from_numpy(matrix).to(device), full_matrices=False)
    left, values, right = (part.cpu().numpy() for part in parts)
    return left, values, right
