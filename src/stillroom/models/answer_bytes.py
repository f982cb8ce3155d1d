"""The bytes of an HTTP answer, read and unpacked within bounds.

A server may send without end, and a megabyte that was packed may be a gigabyte. Knows no endpoint.
"""

from __future__ import annotations

import zlib
from typing import Any

__all__ = ["read_bytes"]

_PACKED = frozenset({"gzip", "x-gzip", "deflate"})


async def read_bytes(answer: Any, most: int) -> bytes:
    """Return an answer's bytes as they were before they were packed.

    Args:
        answer: Of the HTTP library, which does not unpack it.
        most: What is longer is cut somewhere above so many bytes.

    Raises:
        ValueError: If it is packed in a way that nobody asked for, or not as it says.
    """
    data = await _read_up_to(answer, most)
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding in {"", "identity"}:
        return data
    if encoding not in _PACKED:
        raise ValueError(f"the answer is packed as {encoding:.40}")
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # deflate comes with and without a head
        try:
            return zlib.decompressobj(window).decompress(data, most + 1)
        except zlib.error:
            continue
    raise ValueError(f"the answer is no {encoding}")


async def _read_up_to(answer: Any, most: int) -> bytes:
    parts, size = [], 0
    async for part in answer.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > most:
            break
    return b"".join(parts)
