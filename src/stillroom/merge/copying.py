"""Copying tensors between checkpoints as they are stored, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.merge.method import Array

__all__ = ["read_blocks", "write_blocks"]

_BLOCK_BYTES = 4 << 20


def read_blocks(checkpoint: Checkpoint, name: str) -> Iterator[Array]:
    """Yield a tensor's bytes as blocks of whole rows, (rows, bytes) uint8."""
    entry = checkpoint.entry(name)
    rows = entry.shape[0] if entry.shape else 1
    step = max(1, _BLOCK_BYTES * rows // max(entry.size_bytes, 1))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        data = checkpoint.read(name, start, stop)
        yield np.frombuffer(data, np.uint8).reshape(stop - start, -1)


def write_blocks(writer: CheckpointWriter, name: str, blocks: Iterable[Array]) -> None:
    """Write rows of the begun tensor, as stored, from the first to the last, and end it."""
    row = 0
    for block in blocks:
        if block.size:
            data = np.ascontiguousarray(block).data.cast("B")
            writer.place_rows(name, row, data)
            writer.note_rows(data)
        row += len(block)
    writer.end(name)
