"""Which files a name stands for: the one that is named, or those of a kind below a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Listed", "list_files", "sort_files"]


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


@dataclass(frozen=True)
class Listed:
    """The files that are looked at, and those of folders that are passed over as no media."""

    media: tuple[Path, ...]
    passed_over: tuple[Path, ...] = ()

    def line(self) -> str:
        """Return what was passed over as one line, empty if nothing was."""
        if not self.passed_over:
            return ""
        count: dict[str, int] = {}
        for path in self.passed_over:
            ending = path.suffix.lower() or "without an ending"
            count[ending] = count.get(ending, 0) + 1
        endings = ", ".join(f"{ending} {number}" for ending, number in sorted(count.items()))
        many = "1 file was" if len(self.passed_over) == 1 else f"{len(self.passed_over)} files were"
        return f"{many} passed over as no media: {endings}"


def sort_files(paths: Sequence[Path], is_medium: Callable[[Path], bool]) -> Listed:
    """Return the named files, and of folders every file that is a medium, sorted.

    A link that leads nowhere counts as a file: that it cannot be read is for the check to tell.

    Args:
        paths: Files and folders.
        is_medium: Says of a file in a folder whether it is one.
    """
    media: list[Path] = []
    passed_over: list[Path] = []
    for path in paths:
        if not path.is_dir():
            media.append(path)
            continue
        for file in _files_below(path):
            (media if is_medium(file) else passed_over).append(file)
    return Listed(tuple(media), tuple(passed_over))


def _files_below(folder: Path) -> Iterator[Path]:
    yield from (file for file in sorted(folder.rglob("*")) if not file.is_dir())
