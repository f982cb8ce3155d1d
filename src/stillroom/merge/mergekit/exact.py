"""Bit-exact merges of single tensors: whole in torch, or in numpy blocks with the same bits.

The executor of ``arithmetic: mergekit`` asks here for a method by its name; the methods themselves
carry the papers' arithmetic only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod
from stillroom.merge.mergekit.numpy_arithmetic import (
    MAX_SUMMANDS,
    CastBlocks,
    PrunedTaskVector,
    add_products,
    add_task_vectors,
    compute_task_vector,
    find_slerp_shares,
    gather_parents,
    magprune,
    multiply_stored,
    random_sparsify,
    round_to,
    scale_block,
    trim,
)
from stillroom.merge.mergekit.parameters import mergekit_unsupported_error
from stillroom.merge.mergekit.torch_emulation import TorchGenerator
from stillroom.merge.mergekit.torch_library import open_torch_library

if TYPE_CHECKING:
    import torch

__all__ = ["has_exact_blocks", "merge_blocks", "merge_whole_tensor"]

_MergeBlock: TypeAlias = Callable[[int], Array]


def merge_whole_tensor(
    method: MergeMethod,
    base: torch.Tensor | None,
    parents: Sequence[torch.Tensor],
    context: BlockContext,
) -> torch.Tensor:
    """Merge one tensor exactly as mergekit 0.1.5 does, in the tensors' type.

    Random numbers come from torch's global generator.

    Raises:
        RecipeError: If mergekit has no such method, or does not merge these tensors.
    """
    from stillroom.merge.mergekit.torch_methods import WHOLE_TENSOR_METHODS

    name = method.method_name()
    if name not in WHOLE_TENSOR_METHODS:
        raise mergekit_unsupported_error(name)
    return WHOLE_TENSOR_METHODS[name](method, base, parents, context)


def has_exact_blocks(method: MergeMethod, kind: str, shape: tuple[int, ...], parents: int) -> bool:
    """Return whether ``merge_blocks`` gives the bits of ``merge_whole_tensor`` for a tensor.

    Args:
        method: The method.
        kind: Compute type: BF16, F16 or F32.
        shape: Shape of the tensor.
        parents: Number of parents.
    """
    blockwise = _BLOCKWISE.get(method.method_name())
    return blockwise is not None and blockwise.is_exact(method, kind, shape, parents)


def merge_blocks(method: MergeMethod, blocks: CastBlocks, draws: TorchGenerator) -> _MergeBlock:
    """Return a function that merges block ``number`` with the bits of ``merge_whole_tensor``.

    Args:
        method: The method.
        blocks: The tensor.
        draws: The emulated torch generator, in the state left by the previous tensors.
    """
    return _BLOCKWISE[method.method_name()].merge(method, blocks, draws)


@dataclass(frozen=True, slots=True)
class _Blockwise:
    """A method in numpy, and when its bits are torch's."""

    merge: Callable[[Any, CastBlocks, TorchGenerator], _MergeBlock]
    is_exact: Callable[[Any, str, tuple[int, ...], int], bool]


def _merge_linear(method: Any, blocks: CastBlocks, draws: TorchGenerator) -> _MergeBlock:
    weights = [np.float32(weight) for weight in blocks.context.weights]
    mass = np.float32(0)
    for weight in (*weights[:1], *weights[4:], *weights[1:4]):  # torch sums them in groups of four
        mass += weight

    def merge(number: int) -> Array:
        block = blocks[number]
        total = add_products(block.parents, block.context.weights, blocks.kind)
        if method.normalize:
            total /= mass
        return round_to(total, blocks.kind)

    return merge


def _merge_task_arithmetic(method: Any, blocks: CastBlocks, draws: TorchGenerator) -> _MergeBlock:
    kind = blocks.kind

    def merge(number: int) -> Array:
        block = blocks[number]
        vectors = [compute_task_vector(block, index, kind) for index in range(len(block.parents))]
        return add_task_vectors(
            block, vectors, kind, votes=False, normalize=method.normalize, scale=method.scale
        )

    return merge


def _merge_slerp(method: Any, blocks: CastBlocks, draws: TorchGenerator) -> _MergeBlock:
    kind, torch = blocks.kind, open_torch_library()
    if torch is None:
        raise ValueError("torch's library cannot be called")
    parents = gather_parents(blocks)
    shares = find_slerp_shares(method.t, parents, kind, torch)

    def merge(number: int) -> Array:
        start, stop = blocks.first_row(number), blocks.first_row(number + 1)
        shape = (-1, *blocks.context.shape[1:])
        width = math.prod(shape[1:])
        here = slice(start * width, stop * width)
        first, second = (
            multiply_stored(parent[here], share, kind)
            for parent, share in zip(parents, shares, strict=True)
        )
        first += second
        return round_to(first, kind).reshape(shape)

    return merge


def _after_pruning(
    prune: Callable[[Any, CastBlocks, TorchGenerator], list[PrunedTaskVector]],
) -> Callable[[Any, CastBlocks, TorchGenerator], _MergeBlock]:
    """Return the merge of a family whose whole task vectors are pruned first."""

    def merge_tensor(method: Any, blocks: CastBlocks, draws: TorchGenerator) -> _MergeBlock:
        pruned = prune(method, blocks, draws)

        def merge(number: int) -> Array:
            block = blocks.base(number)
            return add_task_vectors(
                block,
                [scale_block(vector, block, blocks.kind) for vector in pruned],
                blocks.kind,
                votes=method.votes,
                normalize=method.normalize,
                scale=method.scale,
            )

        return merge

    return merge_tensor


def _prune_ties(method: Any, blocks: CastBlocks, draws: TorchGenerator) -> list[PrunedTaskVector]:
    return trim(blocks, blocks.context.values("density", method.density))


def _prune_dare(method: Any, blocks: CastBlocks, draws: TorchGenerator) -> list[PrunedTaskVector]:
    densities = blocks.context.values("density", method.density)
    return random_sparsify(blocks, densities, draws, rescale=method.rescale)


def _prune_della(method: Any, blocks: CastBlocks, draws: TorchGenerator) -> list[PrunedTaskVector]:
    windows = method.probability_windows(blocks.context, below_one=True)
    return magprune(blocks, windows, draws, rescale=method.rescale)


def _is_della_exact(method: Any, kind: str, shape: tuple[int, ...], parents: int) -> bool:
    is_rows = 1 <= len(shape) <= 2 and shape[-1] > 1
    return parents <= MAX_SUMMANDS and kind == "BF16" and is_rows


_DARE = _Blockwise(
    _after_pruning(_prune_dare),
    lambda method, kind, shape, parents: (
        parents <= MAX_SUMMANDS and (kind == "BF16" or not method.rescale)
    ),
)
_DELLA = _Blockwise(_after_pruning(_prune_della), _is_della_exact)

_BLOCKWISE: Mapping[str, _Blockwise] = {
    "dare_linear": _DARE,
    "dare_ties": _DARE,
    "della": _DELLA,
    "della_linear": _DELLA,
    # torch sums more weights in a machine-dependent order
    "linear": _Blockwise(_merge_linear, lambda method, kind, shape, parents: parents < 8),
    "slerp": _Blockwise(
        _merge_slerp,
        lambda method, kind, shape, parents: parents == 2 and open_torch_library() is not None,
    ),
    "task_arithmetic": _Blockwise(
        _merge_task_arithmetic, lambda method, kind, shape, parents: parents <= MAX_SUMMANDS
    ),
    "ties": _Blockwise(
        _after_pruning(_prune_ties),
        lambda method, kind, shape, parents: parents <= MAX_SUMMANDS and not method.rescale,
    ),
}
