"""Files that are not UTF-8: what they probably are, and the command that converts them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import DataError

if TYPE_CHECKING:
    from stillroom.objects import ObjectFile

__all__ = ["BOM", "decode_file", "find_encoding_error", "find_wide_encoding", "make_encoding_error"]

BOM = b"\xef\xbb\xbf"
"""Byte order mark of UTF-8, which is no part of the text."""
_PACKERS = {".gz": "gzip -dc", ".zst": "zstd -dc"}


def decode_file(data: bytes, path: Path | ObjectFile) -> str:
    """Return the text of a whole file, without a byte order mark.

    Raises:
        DataError: If it is not UTF-8.
    """
    if find_wide_encoding(data[:4]):
        raise make_encoding_error(path, 0, data)
    start = len(BOM) if data.startswith(BOM) else 0
    try:
        return data[start:].decode()
    except UnicodeDecodeError as error:
        raise make_encoding_error(path, start + error.start, data) from error


def find_encoding_error(path: Path) -> DataError:
    """Return the error of a file of which a part was found not to be UTF-8, with its place."""
    data = path.read_bytes()
    try:
        decode_file(data, path)
    except DataError as error:
        return error
    return make_encoding_error(path, 0, b"")  # it has changed since


def find_wide_encoding(head: bytes) -> str:
    """Return iconv's name of UTF-16 or UTF-32, by the first four bytes of a text; else nothing.

    Without a byte order mark, the zeros of ASCII characters tell.
    """
    name = json.detect_encoding(head) if len(head) > 1 else "utf-8"
    if name.startswith("utf-8"):
        return ""
    return name.upper().replace("-LE", "LE").replace("-BE", "BE")


def make_encoding_error(path: Path | ObjectFile, offset: int, data: bytes) -> DataError:
    """Build the error of a text that is not UTF-8.

    Args:
        path: Its file.
        offset: First byte that is not UTF-8, in the file; in a compressed one, in its text.
        data: A part of the text, with that byte; from the first one on if that is at the start.
    """
    name = find_wide_encoding(data[:4]) if offset == 0 else ""
    found = f"byte {offset} is not UTF-8" + (f": the text is {name}" if name else "")
    stem = path.name
    packer = next((tool for end, tool in _PACKERS.items() if stem.endswith(end)), "")
    if packer:
        stem = stem.rpartition(".")[0]
    stem, dot, suffix = stem.rpartition(".")
    source, target, expected = str(path), f"{stem}.utf8{dot}{suffix}", "a text in UTF-8"
    if isinstance(path, Path):
        target = str(path.with_name(target))
    else:
        source, expected = path.name, f"{expected}; download it to convert it"
    convert = f"iconv -f {name or 'WINDOWS-1252'} -t UTF-8"
    source, target = shlex.quote(source), shlex.quote(target)
    command = f"{packer} {source} | {convert}" if packer else f"{convert} {source}"
    return DataError(
        found,
        code="data.encoding",
        where=str(path),
        expected=expected,
        next=f"{command} > {target}",
    )
