"""A checkpoint on disk (model folder): weights, config and tokenizer; lazy loading of tensors.

Tensors are read one at a time or in blocks of rows; quantized ones are dequantized. The fingerprint
covers tensors, not files: the same weights in one file or seven have the same one. It is computed
from the stored tensors, so that it is also defined for unsupported quantization layouts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints.card import read_card
from stillroom.checkpoints.config_file import read_config
from stillroom.checkpoints.digests import Hasher, fingerprint_of, load_digests, save_digests
from stillroom.checkpoints.gguf import DEQUANTIZED
from stillroom.checkpoints.quantization import drop_quantization, find_quantization
from stillroom.checkpoints.safetensors_format import FLOATS, TensorEntry
from stillroom.checkpoints.store import (
    SafetensorsStore,
    TensorStore,
    dequantize_store,
    open_store,
    torch_dtype,
    view_as_tensor,
)
from stillroom.errors import CheckpointError
from stillroom.provenance import digest_file, digest_json, find_output

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint"]

_BLOCK_BYTES = 4 << 20
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_HEADS = {
    f"{name}.weight"
    for name in (
        "head",  # RWKV
        "output",  # InternLM 2, GIT
        "output_projection",  # TrOCR, BioGPT
        "decoder",  # ModernBERT as a decoder
        "lm_head.linear",  # Phi's first files
        "transformer.output_layer",  # ChatGLM
    )
}
"""Output embeddings of other names, of the whole model alone: layers use these names, too."""
_TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "merges.txt")


class Checkpoint:
    """Weights, config and tokenizer of one model on disk.

    Use ``Checkpoint.open``. Returned tensors are copies or copy-on-write: modifying them does not
    change a file.
    """

    def __init__(self, folder: Path, config: dict[str, Any], store: TensorStore) -> None:
        """Create a checkpoint from an opened store; use ``open``."""
        self.folder = folder
        self.config = drop_quantization(config)
        """Contents of config.json without quantization, since tensors are dequantized."""
        self.quantization = find_quantization(folder, config)
        """Declared quantization; the weights may be plain nevertheless."""
        self._stored = store

    @cached_property
    def _store(self) -> TensorStore:
        """Dequantized tensors, created on first use.

        Raises:
            CheckpointError: If the quantization is not supported.
        """
        return dequantize_store(self._stored, self.quantization, self.folder, self.config)

    @classmethod
    def open(
        cls, path: Path, *, allow_pickle: bool = False, cache: Path | None = None
    ) -> Checkpoint:
        """Open a Hugging Face folder, a job's folder of kind checkpoint, or a GGUF file.

        Args:
            path: The folder or file. A GGUF file is dequantized once, into the cache.
            allow_pickle: Read ``pytorch_model.bin`` if there is no safetensors file. It is loaded
                by torch's weights-only unpickler; nevertheless, allow it for trusted sources only.
            cache: Folder of dequantized files; default the user's cache folder.

        Raises:
            CheckpointError: If it is missing, broken or not allowed; all files are validated first.
                An unsupported quantization layout raises when names or tensors are accessed.
        """
        if not path.exists():
            raise CheckpointError(
                f"{path} does not exist",
                code="checkpoint.missing",
                expected="a folder with config.json and model.safetensors, or a .gguf file",
                next="check the path",
            )
        if path.is_file():
            if path.suffix.lower() != ".gguf":
                raise CheckpointError(
                    f"{path.name} is not a checkpoint",
                    code="checkpoint.missing",
                    where=str(path),
                    expected="a folder with config.json and model.safetensors, or a .gguf file",
                    next="pass the folder that contains the file",
                )
            from stillroom.checkpoints.gguf import dequantize_gguf

            path = dequantize_gguf(path, cache)
        folder = find_output(path, "checkpoint")
        return cls(folder, _read_config(folder), open_store(folder, allow_pickle=allow_pickle))

    def names(self) -> list[str]:
        """Return the sorted names of all tensors."""
        return sorted(self._store.entries)

    def __contains__(self, name: str) -> bool:
        return name in self._store.entries

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's type, shape and position.

        Raises:
            CheckpointError: If there is no such tensor.
        """
        if name not in self._store.entries:
            raise CheckpointError(
                f"the checkpoint has no tensor '{name:.120}'",
                code="checkpoint.no-tensor",
                where=str(self.folder),
                expected=f"one of the {len(self._store.entries)} names of Checkpoint.names()",
                next="compare the architectures of the checkpoints",
            )
        return self._store.entries[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self.entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's storage type."""
        return torch_dtype(self.entry(name).dtype)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor, mapped copy-on-write from its file."""
        self.entry(name)
        return self._store.map(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return rows ``start`` to ``stop`` of a tensor, read into new memory.

        A scalar is one row of shape (). Only these rows become resident.
        """
        entry = self.entry(name)
        shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
        return view_as_tensor(self.read(name, start, stop), entry.dtype, shape)

    def read(self, name: str, start: int, stop: int) -> bytearray | memoryview:
        """Return the stored bytes of rows ``start`` to ``stop``, (rows * row_bytes)."""
        entry = self.entry(name)
        if not 0 <= start <= stop <= entry.rows:
            raise IndexError(f"rows {start}:{stop} of {entry.rows}")
        return self._store.read(name, start, stop)

    def view(self, name: str) -> bytearray | memoryview:
        """Return the stored bytes of a tensor, mapped from its file if that is a local one."""
        entry = self.entry(name)
        if isinstance(self._store, SafetensorsStore):
            return self._store.view(name)
        return self._store.read(name, 0, entry.rows)

    def blocks(self, name: str, block_bytes: int = _BLOCK_BYTES) -> Iterator[torch.Tensor]:
        """Yield a tensor as blocks of whole rows, each of about ``block_bytes``."""
        for start, stop in self.entry(name).row_ranges(block_bytes):
            yield self.rows(name, start, stop)

    @cached_property
    def dequantized_from(self) -> str:
        """Original format of dequantized weights, converted here or by the publisher; else empty.

        Raises:
            CheckpointError: If the quantization is not supported.
        """
        if self.quantization is not None and self._store is not self._stored:
            return self.quantization.label
        tags = read_card(self.folder).get("tags")
        kinds = [
            tag.removeprefix(DEQUANTIZED)
            for tag in (tags if isinstance(tags, list) else ())
            if isinstance(tag, str) and tag.startswith(DEQUANTIZED)
        ]
        return f"{kinds[0].upper()} (GGUF)" if kinds else ""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the tensors."""
        return self._stored.files

    @property
    def size_bytes(self) -> int:
        """Total stored bytes of all tensors."""
        return sum(entry.size_bytes for entry in self._stored.entries.values())

    @cached_property
    def fingerprint(self) -> str:
        """Digest over every tensor's name, type, shape and bytes; reads them all once.

        Independent of shards, file order and file names. Digests of tensors are cached in the
        user's cache as long as the files' paths, sizes and times are unchanged.
        """
        return self._fingerprint(self.digests)

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """BLAKE3 of each stored tensor's bytes by name, cached as the fingerprint's."""
        files = self._stored.files
        digests = load_digests(files)
        if digests is None or digests.keys() != self._stored.entries.keys():
            digests = self._digest_all()
            save_digests(files, digests)
        return digests

    def rehash(self) -> str:
        """Return the fingerprint, reading every byte instead of the user's cache."""
        return self._fingerprint(self._digest_all())

    def _digest_all(self) -> dict[str, str]:
        names = sorted(self._stored.entries)
        return {name: _digest_tensor(self._stored, name) for name in names}

    def _fingerprint(self, digests: Mapping[str, str]) -> str:
        return fingerprint_of(
            (entry.name, entry.dtype, entry.shape, digests[entry.name])
            for entry in self._stored.entries.values()
        )

    @cached_property
    def parameters(self) -> int:
        """Number of parameters; a tied output embedding counts once."""
        skipped = {_HEAD} if self.is_tied and _EMBEDDING in self else set()
        return sum(
            math.prod(entry.shape)
            for name, entry in self._store.entries.items()
            if name not in skipped and entry.dtype in FLOATS
        )

    @property
    def is_tied(self) -> bool:
        """Whether the output embedding is the input embedding.

        Many published configs do not state it, and its default differs by architecture (True for
        Gemma and GPT-2): then the model is tied if no output embedding is stored.
        """
        stated = self.config.get("tie_word_embeddings")
        return not any(map(_is_head, self._stored.entries)) if stated is None else bool(stated)

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of the tokenizer; empty if the folder has none.

        tokenizer.json counts by its values, without truncation and padding, so that a rewritten
        file of the same tokenizer keeps its digest.
        """
        values = self._tokenizer
        if values:
            return digest_json(
                {key: values[key] for key in values if key not in {"truncation", "padding"}}
            )
        files = [self.folder / name for name in _TOKENIZER_FILES if (self.folder / name).is_file()]
        return digest_json([digest_file(file) for file in files]) if files else ""

    @cached_property
    def vocabulary_digest(self) -> str:
        """SHA-256 of the mapping from tokens to ids; empty if tokenizer.json has none."""
        model = self._tokenizer.get("model")
        listed = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(listed, list):  # unigram models list [token, score] in order
            numbers: dict[str, Any] = {
                str(item[0]): token_id for token_id, item in enumerate(listed) if item
            }
        elif isinstance(listed, dict):
            numbers = dict(listed)
        else:
            return ""
        for added in self._tokenizer.get("added_tokens") or ():
            if isinstance(added, dict):
                numbers[str(added.get("content"))] = added.get("id")
        return digest_json(numbers)

    @cached_property
    def _tokenizer(self) -> dict[str, Any]:
        """Contents of tokenizer.json; empty if it is missing."""
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            return {}
        try:
            values = json.loads(path.read_bytes())
            if not isinstance(values, dict):
                raise TypeError("it is not a mapping")
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"tokenizer.json cannot be read: {error!s:.80}",
                code="checkpoint.tokenizer",
                where=str(path),
                expected="a tokenizer as written by the tokenizers library",
                next="download the file again",
            ) from error
        return values

    @cached_property
    def license(self) -> str:
        """License named by the model card or the config; empty if there is none."""
        named = read_card(self.folder).get("license") or self.config.get("license") or ""
        return named if isinstance(named, str) else ""


def _is_head(name: str) -> bool:
    """Return whether a tensor is an output embedding, also of a model of several parts."""
    return name in _HEADS or name.endswith(("lm_head.weight", "embed_out.weight"))


def _digest_tensor(store: TensorStore, name: str) -> str:
    """Return the BLAKE3 digest of one tensor's bytes, read in blocks."""
    digest = Hasher()
    for start, stop in store.entries[name].row_ranges(_BLOCK_BYTES):
        digest.update(store.read(name, start, stop))
    return digest.hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists() and (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            "this is a LoRA adapter, not a whole model",
            code="checkpoint.config",
            where=str(folder),
            expected="a folder with the config.json of a Hugging Face model",
            next="merge it into its base by a recipe of kind merge.weights with the model "
            f"{{model: BASE, adapter: {folder.name}}}",
        )
    try:
        config: dict[str, Any] = read_config(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {error!s:.120}",
            code="checkpoint.config",
            where=str(folder),
            expected="a folder with the config.json of a Hugging Face model",
            next="pass the folder that contains config.json and the weights",
        ) from error
    return config
