"""The base of ``compat: mergekit``, as whole torch tensors: there, or an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stillroom.merge.arithmetic import no_base

if TYPE_CHECKING:
    import torch

__all__ = ["need_base", "stack_vectors"]


def need_base(base: torch.Tensor | None, method: str) -> torch.Tensor:
    """Return the base.

    Raises:
        RecipeError: If the merge has none.
    """
    if base is None:
        raise no_base(method)
    return base


def stack_vectors(
    base: torch.Tensor | None, parents: Sequence[torch.Tensor], method: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the base, and the differences from it in one tensor, (N, ...).

    Raises:
        RecipeError: If the merge has no base.
    """
    import torch

    base = need_base(base, method)
    return base, torch.stack([parent - base for parent in parents])
