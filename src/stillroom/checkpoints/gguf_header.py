"""What a GGUF file claims to hold, bounded before a reader makes objects of it.

The reader of the package gguf takes 65 microseconds and 5 kB for each tensor, key and element of an
array, however small: a file of 100 MB could keep it for minutes and fill the memory. The header is
therefore walked first, by lengths alone.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from stillroom.errors import CheckpointError

__all__ = ["broken_gguf", "check_gguf"]

_MAX_TENSORS = 1 << 14  # a layer's experts are one tensor here: large models have 2,000
_MAX_KEYS = 1 << 12
_MAX_ELEMENTS = 1 << 22  # a vocabulary of 256,000 with scores, types and merges has 1,300,000
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def check_gguf(path: Path) -> None:
    """Refuse a GGUF file whose header is cut off or claims more than any model has.

    Raises:
        CheckpointError: If it does.
    """
    with path.open("rb") as file:
        if path.stat().st_size < 24:
            raise broken_gguf(path, "is too short for a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            try:
                _walk(path, view)
            except (struct.error, OverflowError) as error:  # read beyond the end
                raise broken_gguf(path, "ends within its header") from error


def _walk(path: Path, view: mmap.mmap) -> None:
    magic, version, tensors, keys = struct.unpack_from("<4sIQQ", view)
    if magic != b"GGUF":
        raise broken_gguf(path, "does not begin as a GGUF file")
    if version not in {2, 3}:  # the first counted in 32 bits; later ones are not known
        raise broken_gguf(path, f"is of version {version}; versions 2 and 3 are read")
    for count, most, what in ((tensors, _MAX_TENSORS, "tensors"), (keys, _MAX_KEYS, "keys")):
        if count > most:
            raise broken_gguf(path, f"claims {count} {what}, over {most}")
    at, elements = 24, 0
    for _ in range(keys):
        at = _skip_string(view, at)
        (kind,) = struct.unpack_from("<I", view, at)
        at, count = _skip_value(path, view, at + 4, kind)
        elements += count
        if elements > _MAX_ELEMENTS:
            raise broken_gguf(path, f"claims arrays of more than {_MAX_ELEMENTS} elements")


def _skip_value(path: Path, view: mmap.mmap, at: int, kind: int) -> tuple[int, int]:
    """Return where the value at a place ends, and how many elements it has."""
    if kind == _STRING:
        return _skip_string(view, at), 1
    if kind in _SIZES:
        return at + _SIZES[kind], 1
    if kind != _ARRAY:
        raise broken_gguf(path, f"holds a value of type {kind}, which is not known")
    inner, count = struct.unpack_from("<IQ", view, at)
    at += 12
    if inner in _SIZES:
        return at + count * _SIZES[inner], count
    if inner != _STRING or count > _MAX_ELEMENTS:
        raise broken_gguf(path, f"holds an array of {count} values of type {inner}")
    for _ in range(count):
        at = _skip_string(view, at)
    return at, count


def _skip_string(view: mmap.mmap, at: int) -> int:
    (length,) = struct.unpack_from("<Q", view, at)
    return at + 8 + int(length)


def broken_gguf(path: Path, what: str) -> CheckpointError:
    """Return the error of a GGUF file that cannot be read."""
    return CheckpointError(
        f"{path.name} {what}",
        code="checkpoint.gguf",
        where=str(path),
        expected="a complete GGUF file of an architecture that transformers can load",
        next="download the file again, or use the model's Hugging Face folder",
    )
