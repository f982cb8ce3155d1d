"""GGUF files widened to float16: on a processor, small models are read faster without quanta.

A small model's speed is bounded by arithmetic, not by memory, and llama.cpp multiplies float16 with
less work than most quantized blocks. The widened weights are the quantized ones to float16's
rounding; the activations are no longer quantized, so logits come closer to the reference. Kept by
digest in the cache folder, made once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.checkpoints.dequantize import cache_folder
from stillroom.errors import BackendError, MissingExtraError
from stillroom.jobs.files import full_disk_as_error

__all__ = ["is_worth_widening", "widen_gguf"]

_FORMAT = 1  # raise it when the conversion changes, so that old files are made anew
_SMALL_BYTES = 400 << 20
_KEPT = {"F32", "F16", "BF16", "F64"}
_FAST = {"Q4_0"}  # repacked by llama.cpp for the processor: as fast, and a quarter of the size
_FILE_TYPE_F16 = 1


def is_worth_widening(path: Path) -> bool:
    """Whether a file is small and mostly of types that llama.cpp multiplies slowly.

    Raises:
        MissingExtraError: If the package gguf is not installed.
        BackendError: If the file cannot be read.
    """
    if path.stat().st_size > _SMALL_BYTES:
        return False
    with _reading(path) as reader:
        slow = sum(
            int(tensor.n_bytes)
            for tensor in reader.tensors
            if tensor.tensor_type.name not in _KEPT | _FAST
        )
        return slow * 2 > sum(int(tensor.n_bytes) for tensor in reader.tensors)


def widen_gguf(path: Path, digest: str, cache: Path | None = None) -> Path:
    """Return a GGUF file with the same contents in float16, made on first use.

    Args:
        path: The GGUF file.
        digest: Its sha256, which names the widened file.
        cache: Where to keep it; default the user's cache folder.

    Raises:
        MissingExtraError: If the package gguf is not installed.
        BackendError: If the file cannot be read.
        ResourceError: If the disk is full.
    """
    # llama.cpp shows the stem as the model's name, so the file keeps it.
    folder = (cache or cache_folder()) / "widened" / f"{digest[:32]}-{_FORMAT}"
    target = folder / f"{path.stem}.gguf"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{os.getpid()}.tmp"
    try:
        with full_disk_as_error(target), _reading(path) as reader:
            _write(reader, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtraError.of("gguf", "llamacpp", "reading GGUF models") from error
    try:
        yield GGUFReader(path)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise BackendError(
            f"{path} cannot be read: {str(error).strip() or type(error).__name__}",
            code="backend.unloadable",
            expected="a whole GGUF file",
            next="check the file's size and digest",
        ) from error


def _write(reader: Any, target: Path) -> None:
    from gguf import GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    fields = reader.fields
    writer = GGUFWriter(target, arch=str(fields["general.architecture"].contents()))
    for name, entry in fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = entry.types[0]
        inner = entry.types[-1] if kind == GGUFValueType.ARRAY else None
        value = _FILE_TYPE_F16 if name == "general.file_type" else entry.contents()
        writer.add_key_value(name, value, kind, sub_type=inner)
    for tensor in reader.tensors:
        if tensor.tensor_type.name in _KEPT:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        else:
            wide = dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
            writer.add_tensor(tensor.name, wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
