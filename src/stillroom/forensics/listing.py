"""Which files a name stands for: the one that is named, or those of some endings below a folder."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from pathlib import Path

__all__ = ["list_files"]


def list_files(path: Path, endings: AbstractSet[str]) -> list[Path]:
    """Return the file that is named, whatever its ending, or those below a folder, sorted.

    Args:
        path: A file or a folder.
        endings: Of the files that count in a folder, in lower case.
    """
    if path.is_file():
        return [path]
    return sorted(
        file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in endings
    )
