"""Read the JSON of a config file of a downloaded folder, which may be hostile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.provenance.digests import load_json

__all__ = ["read_config"]

_MAX_BYTES = 10_000_000


def read_config(path: Path, kind: type = dict) -> Any:
    """Return the JSON object, or list, in a file; links are followed, as caches of the hub need.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is a pipe or a device, over 10 MB, or not JSON of this kind.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is not a regular file")
    if size > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
    config = load_json(path.read_text(encoding="utf-8-sig"))
    if not isinstance(config, kind):
        raise ValueError(f"it is not a {'mapping' if kind is dict else kind.__name__}")
    return config
