"""A checkpoint on disk: weights, config and tokenizer, opened without loading them.

Tensors come one at a time or in blocks of rows; quantized ones as the plain tensors they stand
for. The fingerprint names the tensors, not the files: the same weights in one file or seven have
the same one. It is that of what is stored, so that it is known of a layout that none reads here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints.card import read_card
from stillroom.checkpoints.digests import Hasher, fingerprint_of, load_digests, save_digests
from stillroom.checkpoints.gguf import DEQUANTIZED
from stillroom.checkpoints.quantization import drop_quantization, find_quantization
from stillroom.checkpoints.safetensors_format import FLOATS, TensorEntry
from stillroom.checkpoints.store import TensorStore, open_store, torch_dtype
from stillroom.errors import CheckpointError
from stillroom.provenance import digest_file, digest_json, find_output

if TYPE_CHECKING:
    import torch

__all__ = [
    "Checkpoint",
]


_BLOCK_BYTES = 4 << 20


_MAX_CONFIG = 10_000_000


"""What the tag of a card begins with that says from what the weights were dequantized."""


_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


_TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "merges.txt")


class Checkpoint:
    """Weights, config and tokenizer of one model on disk.

    Use ``Checkpoint.open``. Tensors belong to the caller: changing one changes no file.
    """

    def __init__(self, folder: Path, config: dict[str, Any], store: TensorStore) -> None:
        """Stand over an opened store; callers use ``open``."""
        self.folder = folder
        self.config = drop_quantization(config)
        """What config.json says; of quantization it says nothing, since tensors come plain."""
        self.quantization = find_quantization(folder, config)
        """What is said of quantization; the weights may be plain all the same."""
        self._stored = store

    @cached_property
    def _store(self) -> TensorStore:
        """The plain tensors; made when one is asked for first.

        Raises:
            CheckpointError: If they are quantized in a way that is not known here.
        """
        from stillroom.checkpoints.store import dequantize_store

        return dequantize_store(self._stored, self.quantization, self.folder, self.config)

    @classmethod
    def open(
        cls, path: Path, *, allow_pickle: bool = False, cache: Path | None = None
    ) -> Checkpoint:
        """Open a Hugging Face folder, a job's folder of kind checkpoint, or a GGUF file.

        Args:
            path: The folder or file. A GGUF file is dequantized once, into the cache.
            allow_pickle: Read ``pytorch_model.bin`` where there is no safetensors file. It goes
                through torch's weights-only unpickler; still, allow it for trusted makers only.
            cache: Where dequantized files are kept; default the user's cache folder.

        Raises:
            CheckpointError: If it is missing, broken or refused; every file that is read is
                checked first. A layout of quantization that is not known is refused when names or
                tensors are asked for.
        """
        if not path.exists():
            raise CheckpointError(
                f"{path} does not exist",
                code="checkpoint.missing",
                expected="a folder with config.json and model.safetensors, or a .gguf file",
                next="check the path",
            )
        if path.is_file():
            path = _open_file(path, cache)
        folder = find_output(path, "checkpoint")
        return cls(folder, _read_config(folder), open_store(folder, allow_pickle=allow_pickle))

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self._store.entries)

    def __contains__(self, name: str) -> bool:
        """Return whether there is a tensor of that name."""
        return name in self._store.entries

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's type, shape and place.

        Raises:
            CheckpointError: If there is no such tensor.
        """
        if name not in self._store.entries:
            raise CheckpointError(
                f"there is no tensor '{name:.120}'",
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
        """Return a whole tensor, mapped from its file; writing to it changes no file."""
        self.entry(name)
        return self._store.map(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return rows ``start`` to ``stop`` of a tensor, read into memory of their own.

        A scalar is one row of shape (). Nothing but the rows becomes resident.
        """
        import torch

        entry = self.entry(name)
        data = self.read(name, start, stop)
        shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
        dtype = torch_dtype(entry.dtype)
        if not len(data):
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def read(self, name: str, start: int, stop: int) -> bytearray | memoryview:
        """Return the bytes of rows ``start`` to ``stop`` as they are stored, (rows * row_bytes)."""
        entry = self.entry(name)
        if not 0 <= start <= stop <= entry.rows:
            raise IndexError(f"rows {start}:{stop} of {entry.rows}")
        return self._store.read(name, start, stop)

    def blocks(self, name: str, block_bytes: int = _BLOCK_BYTES) -> Iterator[torch.Tensor]:
        """Yield a tensor as blocks of whole rows, each of about ``block_bytes``."""
        entry = self.entry(name)
        step = max(1, block_bytes // max(entry.row_bytes, 1))
        for start in range(0, entry.rows, step):
            yield self.rows(name, start, min(start + step, entry.rows))

    @cached_property
    def dequantized_from(self) -> str:
        """From what the weights are dequantized, here or by who made the folder; else empty.

        Raises:
            CheckpointError: If they are quantized in a way that is not known here.
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
        """The files that the tensors lie in."""
        return self._stored.files

    @property
    def size_bytes(self) -> int:
        """The bytes of all tensors as they are stored."""
        return sum(entry.size_bytes for entry in self._stored.entries.values())

    @cached_property
    def fingerprint(self) -> str:
        """The digest over every tensor's name, type, shape and bytes; reads them all once.

        It does not depend on shards, file order or file names. The tensors' digests are kept in the
        user's cache as long as the files' places, sizes and times stay what they were.
        """
        files = self._stored.files
        digests = load_digests(files)
        if digests is None or digests.keys() != self._stored.entries.keys():
            digests = self._digest_all()
            save_digests(files, digests)
        return self._fingerprint(digests)

    def rehash(self) -> str:
        """Return the fingerprint with every byte read anew, none taken from the user's cache."""
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
        """How many numbers the model learns; a tied output embedding counts once."""
        skipped = {_HEAD} if self.is_tied and _EMBEDDING in self else set()
        return sum(
            math.prod(entry.shape)
            for name, entry in self._store.entries.items()
            if name not in skipped and entry.dtype in FLOATS
        )

    @property
    def is_tied(self) -> bool:
        """Whether the config ties the output embedding to the input embedding."""
        return bool(self.config.get("tie_word_embeddings", False))

    @cached_property
    def tokenizer_digest(self) -> str:
        """The sha256 of what the tokenizer does; empty where the folder has none.

        tokenizer.json counts by its values, without the truncation and padding that a library may
        have left in it, so that a rewritten file of the same tokenizer keeps its digest.
        """
        values = self._tokenizer
        if values:
            return digest_json(
                {key: values[key] for key in values if key not in {"truncation", "padding"}}
            )
        found = [self.folder / name for name in _TOKENIZER_FILES if (self.folder / name).is_file()]
        return digest_json([digest_file(file) for file in found]) if found else ""

    @cached_property
    def vocabulary_digest(self) -> str:
        """The sha256 of which token has which number; empty where tokenizer.json does not say."""
        model = self._tokenizer.get("model")
        listed = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(listed, list):  # unigram models list [token, score] in order
            numbers: dict[str, Any] = {str(item[0]): at for at, item in enumerate(listed) if item}
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
        """What tokenizer.json says; empty where there is none."""
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
                expected="a tokenizer as the tokenizers library writes it",
                next="download the file again",
            ) from error
        return values

    @cached_property
    def license(self) -> str:
        """The license its card names, or its config; empty where nobody says."""
        named = read_card(self.folder).get("license") or self.config.get("license") or ""
        return named if isinstance(named, str) else ""


def _digest_tensor(store: TensorStore, name: str) -> str:
    """Return the BLAKE3 digest of one tensor's bytes, read in blocks."""
    entry, digest = store.entries[name], Hasher()
    step = max(1, _BLOCK_BYTES // max(entry.row_bytes, 1))
    for start in range(0, entry.rows, step):
        digest.update(store.read(name, start, min(start + step, entry.rows)))
    return digest.hexdigest()


def _open_file(path: Path, cache: Path | None) -> Path:
    if path.suffix.lower() != ".gguf":
        raise CheckpointError(
            f"{path.name} is not a checkpoint",
            code="checkpoint.missing",
            where=str(path),
            expected="a folder with config.json and model.safetensors, or a .gguf file",
            next="give the folder that the file lies in",
        )
    from stillroom.checkpoints.gguf import dequantize_gguf

    return dequantize_gguf(path, cache)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise ValueError(f"it is larger than {_MAX_CONFIG} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError("it is not a mapping")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {error!s:.120}",
            code="checkpoint.config",
            where=str(folder),
            expected="a folder with the config.json of a Hugging Face model",
            next="give the folder that holds config.json next to the weights",
        ) from error
    return config
