"""Tensor stores: safetensors, lazily read; object storage; permitted pickles; dequantized weights.

A store maps names to entries and reads rows of one tensor; it knows neither config nor tokenizer.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.checkpoints.dtypes import narrow
from stillroom.checkpoints.quantization import Quantization, map_quantized_tensors
from stillroom.checkpoints.quantized_tensors import QuantizedTensor, StoredParts
from stillroom.checkpoints.safetensors_format import (
    DTYPE_SIZES,
    LONG_NAMES,
    TensorEntry,
    is_crowded,
    parse_header,
    read_header,
)
from stillroom.errors import CheckpointError
from stillroom.objects import RemoteFolder, find_remote, join_address, read_range

if TYPE_CHECKING:
    import torch

__all__ = [
    "DequantizedStore",
    "PickleStore",
    "RemoteStore",
    "SafetensorsStore",
    "TensorStore",
    "dequantize_store",
    "open_store",
    "torch_dtype",
    "view_as_tensor",
]

INDEX_FILE = "model.safetensors.index.json"

_SINGLE = "model.safetensors"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_MAX_INDEX = 100_000_000
_MAX_LISTED = 1 << 19

"""Maximum tensors of a checkpoint: GPTQ with a trillion parameters, 384 experts has 280,000."""


class SafetensorsStore:
    """Tensors of one or more safetensors files."""

    def __init__(self, homes: Mapping[str, Path], entries: Mapping[str, TensorEntry]) -> None:
        """Create a store of validated entries; ``homes`` maps tensors to files."""
        self.entries = entries
        self.files = tuple(sorted(set(homes.values())))
        same = {path: path for path in self.files}  # one object a file: paths compare slowly
        self._homes = {name: same[path] for name, path in homes.items()}
        self._open: dict[Path, int] = {}
        self._mapped: dict[Path, mmap.mmap] = {}

    def map(self, name: str) -> torch.Tensor:
        """Return a whole tensor, copy-on-write over its file's pages."""
        import torch

        entry = self.entries[name]
        dtype = torch_dtype(entry.dtype)
        if entry.size_bytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        skip = entry.start % mmap.ALLOCATIONGRANULARITY
        view = mmap.mmap(
            self._descriptor(name),
            entry.size_bytes + skip,
            access=mmap.ACCESS_COPY,
            offset=entry.start - skip,
        )
        flat = torch.frombuffer(view, dtype=torch.uint8, offset=skip)
        if entry.start % dtype.itemsize:  # old writers did not align, as a view requires
            flat = flat.clone()
        return flat.view(dtype).view(entry.shape)

    def view(self, name: str) -> memoryview:
        """Return the bytes of a tensor, read-only; one mapping a file, since each holds it open."""
        entry, path = self.entries[name], self._homes[name]
        if path not in self._mapped:
            self._mapped[path] = mmap.mmap(self._descriptor(name), 0, access=mmap.ACCESS_READ)
        return memoryview(self._mapped[path])[entry.start : entry.start + entry.size_bytes]

    def read(self, name: str, start: int, stop: int) -> bytearray | memoryview:
        """Return the bytes of rows, read instead of mapped, to keep resident memory small."""
        entry = self.entries[name]
        size = (stop - start) * entry.row_bytes
        view = memoryview(np.empty(size, np.uint8).data)  # not zeroed first, unlike a bytearray
        offset, got = entry.start + start * entry.row_bytes, 0
        while got < size:
            count = os.preadv(self._descriptor(name), [view[got:]], offset + got)
            if count == 0:
                raise CheckpointError(
                    f"{self._homes[name].name} ended while tensor '{name}' was read",
                    code="checkpoint.broken",
                    where=str(self._homes[name]),
                    expected="a file that does not change while it is read",
                    next="restore the file and run again",
                )
            got += count
        return view

    def _descriptor(self, name: str) -> int:
        path = self._homes[name]
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[path]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


class RemoteStore:
    """Tensors of safetensors files in an object store, read by ranges."""

    def __init__(
        self, note: Path, homes: Mapping[str, str], entries: Mapping[str, TensorEntry]
    ) -> None:
        """Create a store of validated entries; ``homes`` maps tensors to addresses."""
        self.entries, self._homes = entries, homes
        self.files: tuple[Path, ...] = (note,)
        """The mirror's metadata file, which changes with the objects."""

    def map(self, name: str) -> torch.Tensor:
        """Return a whole tensor in new memory."""
        entry = self.entries[name]
        return view_as_tensor(self.read(name, 0, entry.rows), entry.dtype, entry.shape)

    def read(self, name: str, start: int, stop: int) -> bytearray | memoryview:
        """Return the bytes of rows in new memory."""
        entry = self.entries[name]
        first = entry.start + start * entry.row_bytes
        last = entry.start + stop * entry.row_bytes
        return bytearray(read_range(self._homes[name], first, last) if last > first else b"")


@dataclass(frozen=True)
class _WeightsFolder:
    """The safetensors files of a checkpoint, local or in an object store, and their headers.

    An index lists the shards; otherwise there is a single file.
    """

    folder: Path
    remote: RemoteFolder | None

    def has(self, file: str) -> bool:
        """Return whether a weights file exists."""
        if self.remote is not None:
            return file in self.remote.left
        return (self.folder / file).is_file()

    def read_header(self, file: str) -> dict[str, TensorEntry]:
        """Return the tensors of a file."""
        path = self.folder / file
        if self.remote is None:
            return read_header(path)
        read = partial(read_range, join_address(self.remote.address, file))
        return parse_header(path, self.remote.left[file], read)

    def open(self, homes: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> TensorStore:
        """Return the store of tensors, given the file of each."""
        if self.remote is None:
            paths = {name: self.folder / file for name, file in homes.items()}
            return SafetensorsStore(paths, entries)
        address = self.remote.address
        addresses = {name: join_address(address, file) for name, file in homes.items()}
        return RemoteStore(
            self.folder.with_name(f"{self.folder.name}.objects.json"), addresses, entries
        )


class PickleStore:
    """Tensors of a permitted ``pytorch_model.bin``, loaded by torch's weights-only unpickler."""

    def __init__(self, path: Path) -> None:
        """Unpickle ``path``; only plain tensors are accepted."""
        import torch

        names = {torch_dtype(kind): kind for kind in LONG_NAMES}
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a hostile pickle may raise anything
            raise _refuse(path, f"cannot be unpickled safely: {error!s:.200}") from error
        if not isinstance(loaded, dict) or not all(
            isinstance(value, torch.Tensor) and value.dtype in names for value in loaded.values()
        ):
            raise _refuse(path, "contains something other than plain tensors")
        self._tensors: dict[str, torch.Tensor] = {
            str(name): tensor.contiguous() for name, tensor in loaded.items()
        }
        self.files: tuple[Path, ...] = (path,)
        self.entries = {
            name: TensorEntry(name, names[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)
            for name, tensor in self._tensors.items()
        }

    def map(self, name: str) -> torch.Tensor:
        """Return a copy of a whole tensor."""
        return self._tensors[name].clone()

    def read(self, name: str, start: int, stop: int) -> bytearray | memoryview:
        """Return the bytes of rows in new memory."""
        import torch

        tensor = self._tensors[name]
        rows = (tensor[start:stop] if tensor.dim() else tensor).clone().reshape(-1)
        return memoryview(rows.view(torch.uint8).numpy().data) if rows.numel() else bytearray()


def view_as_tensor(data: bytearray | memoryview, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return stored bytes as a tensor of a safetensors type."""
    import torch

    dtype = torch_dtype(kind)
    if not len(data):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).view(shape)


def torch_dtype(kind: str) -> torch.dtype:
    """Return the torch type of a safetensors type name."""
    import torch

    dtype: torch.dtype = getattr(torch, LONG_NAMES[kind])
    return dtype


def open_store(folder: Path, *, allow_pickle: bool = False) -> TensorStore:
    """Open the weights of a folder.

    Raises:
        CheckpointError: If they are missing or broken, or only a pickle exists that is not allowed.
    """
    remote = find_remote(folder)
    weights = _WeightsFolder(folder, remote if remote is not None and remote.left else None)
    index = folder / INDEX_FILE
    is_single = weights.has(_SINGLE)
    # Saved again in one file, a model keeps the index of its former shards; transformers reads the
    # file, too.
    if index.is_file() and (not is_single or _SINGLE in dict(_read_index(index)).values()):
        return _open_shards(weights, index)
    if is_single:
        entries = weights.read_header(_SINGLE)
        return weights.open(dict.fromkeys(entries, _SINGLE), entries)
    pickles = [folder / name for name in _PICKLES if (folder / name).is_file()]
    if pickles and allow_pickle and pickles[0].suffix == ".bin":
        return PickleStore(pickles[0])
    if pickles:
        raise CheckpointError(
            f"{pickles[0].name} is a pickle, which can run code when it is read",
            code="checkpoint.pickle",
            where=str(folder),
            expected="model.safetensors",
            next="convert it to safetensors, or allow pickles if you trust its maker",
        )
    raise CheckpointError(
        f"{folder} contains no weights",
        code="checkpoint.no-weights",
        where=str(folder),
        expected=f"{_SINGLE}, or {INDEX_FILE} with its shards",
        next="check that the download is complete",
    )


def _open_shards(weights: _WeightsFolder, index: Path) -> TensorStore:
    homes = {name: _shard_name(weights, index, name, file) for name, file in _read_index(index)}
    entries: dict[str, TensorEntry] = {}
    for file in sorted(set(homes.values())):
        for name, entry in weights.read_header(file).items():
            if homes.get(name) != file:
                raise _bad_index(index, f"{file} contains '{name:.80}', which it does not list")
            entries[name] = entry
    for name, file in homes.items():
        if name not in entries:
            raise _bad_index(index, f"it lists '{name:.80}' in {file}, which does not contain it")
    return weights.open(homes, entries)


def _read_index(index: Path) -> list[tuple[str, str]]:
    if index.stat().st_size > _MAX_INDEX:
        raise _bad_index(index, f"it is larger than {_MAX_INDEX} bytes")
    text = index.read_bytes()
    if is_crowded(text, _MAX_LISTED, lists=0, commas=1):
        raise _bad_index(index, f"it lists more than {_MAX_LISTED} tensors")
    try:
        listed = json.loads(text)["weight_map"]
        pairs = list(listed.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad_index(index, f"it has no weight_map ({error!s:.80})") from error
    if not pairs or not all(isinstance(file, str) for _, file in pairs):
        raise _bad_index(index, "its weight_map does not name a file for each tensor")
    return pairs


def _shard_name(weights: _WeightsFolder, index: Path, name: str, file: str) -> str:
    if Path(file).name != file or "\\" in file or "\0" in file or not file.endswith(".safetensors"):
        raise _bad_index(index, f"it looks for '{name:.80}' in {file!r:.80}")
    if not weights.has(file):
        raise CheckpointError(
            f"the shard {file:.80} is missing",
            code="checkpoint.missing-shard",
            where=str(index),
            expected=f"{file:.80} next to the index",
            next="check that the download is complete",
        )
    return file


def _bad_index(index: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{index.name} is invalid: {problem}",
        code="checkpoint.index",
        where=str(index),
        expected="a weight_map from every tensor to a .safetensors file of the same folder",
        next="download or write the checkpoint again",
    )


def _refuse(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} {problem}",
        code="checkpoint.pickle",
        where=str(path),
        expected="a state dict of plain tensors",
        next="convert it to safetensors at its source",
    )


_SHORT = {LONG_NAMES[kind]: kind for kind in ("BF16", "F16", "F32")}


class DequantizedStore:
    """Plain tensors: those stored as such, and dequantized ones."""

    def __init__(
        self,
        store: TensorStore,
        tensors: Mapping[str, QuantizedTensor],
        used: frozenset[str],
        dtype: str,
    ) -> None:
        self._store, self._tensors, self._parts = store, tensors, StoredParts(store)
        self.files: tuple[Path, ...] = store.files
        dequantized = {
            name: TensorEntry(
                name, dtype, tensor.shape, 0, math.prod(tensor.shape) * DTYPE_SIZES[dtype]
            )
            for name, tensor in tensors.items()
        }
        plain = {name: entry for name, entry in store.entries.items() if name not in used}
        self.entries: Mapping[str, TensorEntry] = plain | dequantized

    def map(self, name: str) -> torch.Tensor:
        """Return a whole tensor; a dequantized one is in new memory."""
        if name not in self._tensors:
            return self._store.map(name)
        entry = self.entries[name]
        return view_as_tensor(self.read(name, 0, entry.rows), entry.dtype, entry.shape)

    def read(self, name: str, start: int, stop: int) -> bytearray | memoryview:
        """Return the bytes of rows in new memory."""
        tensor = self._tensors.get(name)
        if tensor is None:
            return self._store.read(name, start, stop)
        if start == stop:
            return bytearray()
        bits = narrow(tensor.rows(self._parts, start, stop), self.entries[name].dtype)
        return bytearray(bits.tobytes())


def dequantize_store(
    store: TensorStore, quantization: Quantization | None, folder: Path, config: Mapping[str, Any]
) -> TensorStore:
    """Return a store of plain tensors; the store itself if nothing is quantized.

    Raises:
        CheckpointError: If the quantization is not supported.
    """
    tensors, used = map_quantized_tensors(quantization, folder, store.entries, StoredParts(store))
    if not tensors and not used:
        return store
    return DequantizedStore(store, tensors, used, _choose_dtype(config))


def _choose_dtype(config: Mapping[str, Any]) -> str:
    """Return the storage type of the weights in a config; bfloat16 by default."""
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            named = str(holder.get(key) or "").removeprefix("torch.")
            if named in _SHORT:
                return _SHORT[named]
    return "BF16"


TensorStore = SafetensorsStore | RemoteStore | PickleStore | DequantizedStore
"""Named tensors on disk."""
