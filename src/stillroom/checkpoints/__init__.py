"""Checkpoints: folders of weights, config and tokenizer, read and written tensor by tensor.

``Checkpoint`` opens a Hugging Face folder (one file or shards) or a GGUF file and reads tensors or
blocks of rows without loading the whole; ``CheckpointWriter`` writes one deterministically, shard
by shard; ``dequantize_gguf`` converts a quantized file to a cached folder.

Inputs are untrusted: headers are validated before tensors are read, and nothing is unpickled unless
allowed. Independent of architectures: only names, shapes and bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.checkpoints.checkpoint import Checkpoint
    from stillroom.checkpoints.gguf import dequantize_gguf
    from stillroom.checkpoints.writer import CheckpointWriter

__all__ = ["Checkpoint", "CheckpointWriter", "dequantize_gguf"]

__getattr__ = export_lazily(__name__)
