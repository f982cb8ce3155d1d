"""Prefix caching: a KV cache of prompt prefixes, which later prompts reuse without a changed bit.

A prompt is read in blocks whose ends are a function of the position alone (64 tokens each up to
128, then 128, and 256 from 512 on). A block's keys and values are then a function of its tokens and
those before it: reading them again would repeat the same operations on the same shapes. Reuse
therefore changes no completion, and a prompt costs its tokens behind the last shared block end.
The rest behind the last block end is not stored, and neither are generated tokens, which are
computed in other shapes. The least recently used blocks are evicted (LRU) beyond a budget, which is
``prefix_cache_mb`` of ``models.backends.transformers``.

Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
PagedAttention", arXiv:2309.06180 (blocks shared by hash of their prefix). Differs: ends of blocks
are also those of forward passes, for equal bits.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache

__all__ = ["PrefixCache", "split_prompt"]

_Block = list[tuple[Tensor, Tensor]]  # keys and values by layer, (1, heads, tokens, dim) each


def split_prompt(length: int) -> list[tuple[int, int]]:
    """Return the blocks of a prompt, [start, end) each; the last one may be incomplete."""
    spans: list[tuple[int, int]] = []
    start = 0
    while start < length:
        end = min(_block_end(start), length)
        spans.append((start, end))
        start = end
    return spans


def _block_end(start: int) -> int:
    return start + (64 if start < 128 else 128 if start < 512 else 256)


class PrefixCache:
    """Blocks of read prompts within a memory limit; the least recently used are evicted first.

    Not thread-safe.
    """

    def __init__(self, capacity: int) -> None:
        """Set the limit.

        Args:
            capacity: Maximum bytes of keys and values; 0 stores nothing.
        """
        self.capacity = capacity
        self.size = 0
        """Bytes of the stored keys and values."""
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()

    def restore(self, ids: Sequence[int]) -> tuple[Any, int]:
        """Return a new cache with the stored beginning of a prompt, and its length in tokens.

        Args:
            ids: Token ids of the prompt; its last token is always left to read, for its logits.
        """
        found: list[bytes] = []
        length = 0
        for key, end in _complete_blocks(ids[:-1]):
            if key not in self._blocks:
                break
            found.append(key)
            length = end
        for key in reversed(found):  # a beginning is needed as long as anything that follows it
            self._blocks.move_to_end(key)
        cache: Any = DynamicCache()
        blocks = [self._blocks[key] for key in found]
        for layer, parts in enumerate(zip(*blocks, strict=True)):
            keys, values = zip(*parts, strict=True)
            cache.update(_join(keys), _join(values), layer)
        return cache, length

    def store(self, ids: Sequence[int], cache: Any) -> None:
        """Copy the complete blocks of a prompt that are not stored yet and fit within the limit.

        Args:
            ids: Token ids of the prompt.
            cache: transformers DynamicCache of its keys and values, (1, heads, T, dim) a layer.
        """
        keys: list[bytes] = []
        start = needed = 0
        for key, end in _complete_blocks(ids):
            block = [
                (layer.keys[:, :, start:end], layer.values[:, :, start:end])
                for layer in cache.layers
            ]
            needed += _count_bytes(block)
            if needed > self.capacity:  # without its beginning a block is of no use
                break
            keys.append(key)
            if key in self._blocks:
                self._blocks.move_to_end(key)
            else:
                self._add(key, block)
            start = end
        for key in reversed(keys):
            self._blocks.move_to_end(key)

    def clear(self) -> None:
        """Drop all blocks."""
        self._blocks.clear()
        self.size = 0

    def _add(self, key: bytes, block: _Block) -> None:
        """Copy a block, in place of those unused for longest."""
        added = _count_bytes(block)
        while self.size + added > self.capacity:
            self.size -= _count_bytes(self._blocks.popitem(last=False)[1])
        self._blocks[key] = [(keys.clone(), values.clone()) for keys, values in block]
        self.size += added


def _complete_blocks(ids: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """Yield each complete block's key, which digests all tokens up to its end, and its end."""
    digest = hashlib.sha256()
    start = 0
    while (end := _block_end(start)) <= len(ids):
        digest.update(array("q", ids[start:end]).tobytes())
        yield digest.digest(), end
        start = end


def _join(parts: Sequence[Tensor]) -> Tensor:
    from torch import cat

    return cat(list(parts), dim=-2)


def _count_bytes(block: _Block) -> int:
    return sum(tensor.nbytes for pair in block for tensor in pair)
