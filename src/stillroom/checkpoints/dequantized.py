"""A store of plain tensors over one of quantized ones: dequantized as they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints.codes import Parts, Quantized
from stillroom.checkpoints.header import DTYPE_SIZES, LONG_NAMES, TensorEntry
from stillroom.checkpoints.numbers import narrow
from stillroom.checkpoints.quantization import Quantization, lay_out
from stillroom.checkpoints.store import Store, torch_dtype

if TYPE_CHECKING:
    import torch

__all__ = ["DequantizedStore", "as_plain"]

_SHORT = {LONG_NAMES[kind]: kind for kind in ("BF16", "F16", "F32")}


class DequantizedStore:
    """Plain tensors, those that are stored so and those that codes stand for."""

    def __init__(
        self, store: Store, tensors: Mapping[str, Quantized], used: frozenset[str], kind: str
    ) -> None:
        """Stand over a store.

        Args:
            store: What is on disk.
            tensors: What its codes stand for.
            used: The stored tensors that are codes, scales and the like.
            kind: The storage type that codes are dequantized to.
        """
        self._store, self._tensors, self._parts = store, tensors, Parts(store)
        self.files = store.files
        made = {
            name: TensorEntry(name, kind, each.shape, 0, math.prod(each.shape) * DTYPE_SIZES[kind])
            for name, each in tensors.items()
        }
        plain = {name: entry for name, entry in store.entries.items() if name not in used}
        self.entries: Mapping[str, TensorEntry] = plain | made

    def map(self, name: str) -> torch.Tensor:
        """Return a whole tensor; one that codes stand for is in memory of its own."""
        import torch

        if name not in self._tensors:
            return self._store.map(name)
        entry, data = self.entries[name], self.read(name, 0, self.entries[name].rows)
        dtype = torch_dtype(entry.dtype)
        if not len(data):
            return torch.empty(entry.shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).view(entry.shape)

    def read(self, name: str, start: int, stop: int) -> bytearray | memoryview:
        """Return rows' bytes in memory of their own."""
        each = self._tensors.get(name)
        if each is None:
            return self._store.read(name, start, stop)
        if start == stop:
            return bytearray()
        bits = narrow(each.rows(self._parts, start, stop), self.entries[name].dtype)
        return bytearray(bits.tobytes())


def as_plain(
    store: Store, found: Quantization | None, folder: Path, config: Mapping[str, Any]
) -> Store:
    """Return a store of plain tensors over what is stored: itself, where nothing is quantized.

    Raises:
        CheckpointError: If weights are quantized in a way that is not known here.
    """
    tensors, used = lay_out(found, folder, store.entries, Parts(store))
    if not tensors:
        return store
    return DequantizedStore(store, tensors, used, _kind_of(config))


def _kind_of(config: Mapping[str, Any]) -> str:
    """Return the storage type that a config names for its weights; bfloat16 where none is."""
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            named = str(holder.get(key) or "").removeprefix("torch.")
            if named in _SHORT:
                return _SHORT[named]
    return "BF16"
