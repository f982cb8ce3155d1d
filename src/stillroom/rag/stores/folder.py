"""Store the index in a folder: an SQLite catalog and immutable segments; no server, one machine.

Suitable for some millions of passages and any number of readers on the same disk. The life cycle is
described in docs/explanation/store.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import IndexStore, LateInteractionSettings, SparseSettings

if TYPE_CHECKING:
    from stillroom.rag.storage.protocol import IndexStorage, IndexWriter

__all__ = ["Folder"]


class Folder(IndexStore):
    """Storage in the index's own folder."""

    paper: ClassVar[str] = ""

    sparse: SparseSettings | None = Field(
        None, description="store learned term weights, for the retriever sparse"
    )
    late_interaction: LateInteractionSettings | None = Field(
        None, description="store token vectors, for the retriever multi_vector"
    )

    @property
    @override
    def auxiliary(self) -> tuple[SparseSettings | None, LateInteractionSettings | None]:
        return self.sparse, self.late_interaction

    @override
    def create(self, folder: Path, description: Mapping[str, Any]) -> IndexWriter:
        from stillroom.rag.storage.folder.writer import FolderIndexWriter

        return FolderIndexWriter.create(folder, description)

    @override
    def open(self, folder: Path, config: Mapping[str, Any]) -> IndexStorage:
        from stillroom.rag.storage.folder.store import FolderStore

        return FolderStore(folder)
