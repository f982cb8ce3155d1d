"""Checkpoints: folders of weights, config and tokenizer, read and written tensor by tensor.

``Checkpoint`` opens a Hugging Face folder (one file or shards) or a GGUF file and gives tensors or
blocks of their rows, without ever loading the whole; ``CheckpointWriter`` writes one, shard by
shard and deterministically; ``dequantize_gguf`` turns a quantized file into a folder once and keeps
it.
What is read is taken as hostile: headers are checked before any byte of a tensor is believed, and
nothing is unpickled unless that is allowed. Knows no architecture: names, shapes and bytes only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.checkpoints.checkpoint import Checkpoint
    from stillroom.checkpoints.gguf import dequantize_gguf
    from stillroom.checkpoints.writer import CheckpointWriter

__all__ = ["Checkpoint", "CheckpointWriter", "dequantize_gguf"]

_HOMES = {
    "Checkpoint": "stillroom.checkpoints.checkpoint",
    "CheckpointWriter": "stillroom.checkpoints.writer",
    "dequantize_gguf": "stillroom.checkpoints.gguf",
}


def __getattr__(name: str) -> Any:
    """Load a class (and with it torch) on first use."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(name)
