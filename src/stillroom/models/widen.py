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

__all__ = ["choose_weights", "widen_gguf"]

_FORMAT = 1  # raise it when the conversion changes, so that old files are made anew
_SMALL_BYTES = 400 << 20
_KEPT = {"F32", "F16", "BF16", "F64"}
_FAST = {"Q4_0"}  # repacked by llama.cpp for the processor: as fast, and a quarter of the size
_FILE_TYPE_F16 = 1


def choose_weights(path: Path, digest: str, cache: Path | None = None) -> tuple[Path, bool]:
    """Return the file to read, and whether it is a widened one: small, slow types are widened.

    Args:
        path: The GGUF file.
        digest: Its sha256; what was decided for it is remembered in the cache.
        cache: Where widened files are kept; default the user's cache folder.

    Raises:
        MissingExtraError: If the package gguf is not installed.
        BackendError: If the file cannot be read.
        ResourceError: If the disk is full.
    """
    if path.stat().st_size > _SMALL_BYTES:
        return path, False
    target = _target(path, digest, cache)
    if target.is_file():
        return target, True
    as_stored = target.with_name("as-stored")
    if as_stored.is_file():
        return path, False
    with _reading(path) as reader:
        sizes = {True: 0, False: 0}
        for tensor in reader.tensors:
            sizes[tensor.tensor_type.name in _KEPT | _FAST] += int(tensor.n_bytes)
    if sizes[False] > sizes[True]:
        return widen_gguf(path, digest, cache), True
    as_stored.parent.mkdir(parents=True, exist_ok=True)
    as_stored.touch()
    return path, False


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
    target = _target(path, digest, cache)
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}.tmp")
    try:
        with full_disk_as_error(target), _reading(path) as reader:
            _write(reader, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _target(path: Path, digest: str, cache: Path | None) -> Path:
    folder = (cache or cache_folder()) / "widened" / f"{digest[:32]}-v{_FORMAT}"
    return folder / f"{path.stem}.gguf"


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
