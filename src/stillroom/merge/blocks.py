"""``ArrayBlocks``: tensors that are in memory, as the blocks a method reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from stillroom.merge.method import Array, Block, MergeMethod, Place

__all__ = ["ArrayBlocks", "merge_arrays"]

T = TypeVar("T")


class ArrayBlocks:
    """One tensor of a base and parents in memory, cut into blocks of whole rows."""

    def __init__(
        self, base: Array | None, parents: Sequence[Array], at: Place, rows: int | None = None
    ) -> None:
        """Stand over arrays of one shape and type; ``rows`` a block, default all."""
        self.at = at
        self._base, self._parents = base, tuple(parents)
        shape = self._parents[0].shape
        self.size = math.prod(shape)
        self._rows = shape[0] if shape else 1
        self._step = max(1, rows or self._rows)

    def __len__(self) -> int:
        """Return how many blocks there are."""
        return -(-self._rows // self._step)

    def __getitem__(self, number: int) -> Block:
        """Return one block; its arrays are views."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = number * self._step
        width = self.size // max(self._rows, 1)

        def cut(array: Array) -> Array:
            return array[start : start + self._step] if array.ndim else array

        return Block(
            None if self._base is None else cut(self._base),
            tuple(cut(parent) for parent in self._parents),
            replace(self.at, offset=start * width),
        )

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks from first row to last."""
        for number in range(len(self)):
            yield self[number]

    def each(self, reduce: Callable[[Block], T]) -> list[T]:
        """Return ``reduce`` of every block, in order."""
        return [reduce(block) for block in self]


def merge_arrays(
    method: MergeMethod,
    base: Array | None,
    parents: Sequence[Array],
    at: Place | None = None,
    *,
    rows: int | None = None,
) -> Array:
    """Merge one tensor that is in memory; the plain function behind the engine.

    Args:
        method: The method.
        base: The base's tensor, where the method needs one.
        parents: The parents' tensors, same shape and type.
        at: Name, weights and seed; default weights of 1 and seed 0.
        rows: Rows of a block; default all at once. It changes no bit.

    Returns:
        The merged tensor, same shape and type.
    """
    import numpy as np

    shape = parents[0].shape
    if at is None:
        keys = tuple(f"parent{number}" for number in range(len(parents)))
        at = Place("tensor", shape, keys, (1.0,) * len(parents))
    if method.needs_whole(at.name, shape):
        rows = None
    blocks = ArrayBlocks(base, parents, at, rows)
    blocks.at = replace(at, overall=method.survey([blocks]))
    measured = method.measure(blocks)
    merged = [method.combine(block.base, block.parents, measured, block.at) for block in blocks]
    if not merged:
        return np.zeros_like(parents[0])
    return np.concatenate(merged) if shape else merged[0]
