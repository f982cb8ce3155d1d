"""Tree: a finished tree of summaries over an index, open for searching from several threads.

Like a graph it is derived from one state of an index and searched together with one. A node stands
on every passage beneath it and is used only where all of them may be seen. A summary is found,
never cited: it leads to the passages beneath it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stillroom.rag.graphs.files import (
    NODE_VECTORS,
    NODES,
    SOURCES,
    TREE,
    find_graph,
    read_graph_description,
    read_rows,
)
from stillroom.rag.graphs.parts import SourcePassage, Span

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Tree", "TreeNode", "open_tree"]


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A summary: its level from 1, its text, the spans and rows it stands on.

    ``origin`` is ``source`` where the text is made of the documents' own sentences, which ``spans``
    name, and ``synthetic`` where a model wrote it; ``rows`` are all passages beneath it.
    """

    id: str
    level: int
    text: str
    origin: str
    children: tuple[str, ...]
    rows: tuple[int, ...]
    spans: tuple[Span, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "id": self.id,
            "level": self.level,
            "text": self.text,
            "origin": self.origin,
            "children": list(self.children),
            "rows": list(self.rows),
            "spans": [list(span) for span in self.spans],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TreeNode:
        """Read what ``to_json`` wrote."""
        return cls(
            data["id"],
            data["level"],
            data["text"],
            data["origin"],
            tuple(data["children"]),
            tuple(data["rows"]),
            tuple((row, start, end) for row, start, end in data["spans"]),
        )


class Tree:
    """A finished tree; use ``open``, or ``open_tree``, which keeps the last ones."""

    def __init__(self, folder: Path, *, verify: bool) -> None:
        """Read the files of ``folder``; callers use ``open``."""
        self.folder = folder
        self.description = read_graph_description(folder, "tree", verify=verify)
        self.sources = [SourcePassage(*row) for row in read_rows(folder / SOURCES)]
        self.nodes = [TreeNode.from_json(row) for row in read_rows(folder / NODES)]
        self.vectors: NDArray[np.float32] = np.load(folder / NODE_VECTORS, mmap_mode="r")

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Self:
        """Open the tree of a finished job, or a folder that holds tree.json.

        Raises:
            DataError: If the path is missing or another kind of artifact.
            IntegrityError: If a file is missing, half-written or changed.
        """
        return cls(find_graph(Path(path), "tree"), verify=verify)

    @property
    def digest(self) -> str:
        """The digest of the tree."""
        return self.description.digest

    def likeness(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of a query's vector with every summary, (N,)."""
        return np.asarray(self.vectors @ query, dtype=np.float32)


_OPENING = threading.Lock()


def open_tree(path: Path | str) -> Tree:
    """Return the tree at ``path``; the last ones stay open until their files change.

    Raises:
        DataError: If the path is missing or another kind of artifact.
        IntegrityError: If a file is missing, half-written or changed.
    """
    folder = find_graph(Path(path), "tree")
    mark = folder / TREE
    changed = mark.stat().st_mtime_ns if mark.is_file() else 0
    with _OPENING:
        return _open_kept(folder.absolute(), changed)


@lru_cache(maxsize=4)
def _open_kept(folder: Path, changed: int) -> Tree:
    return Tree.open(folder)
