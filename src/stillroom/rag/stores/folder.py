"""A folder of files: an SQLite ledger and immutable segments; no server, one machine.

Fits up to some millions of passages and any number of readers that see the same disk. How it lives
is told in docs/explanation/store.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from stillroom.rag.storing import IndexStore

if TYPE_CHECKING:
    from stillroom.rag.store.protocol import Store, StoreWriter

__all__ = ["Folder"]


class Folder(IndexStore):
    """The index's own folder."""

    paper: ClassVar[str] = ""
    keeps_extras: ClassVar[bool] = True

    @override
    def create(self, folder: Path, description: Mapping[str, Any]) -> StoreWriter:
        from stillroom.rag.store.writer import Writer

        return Writer.create(folder, description)

    @override
    def open(self, folder: Path, told: Mapping[str, Any]) -> Store:
        from stillroom.rag.store.folder_store import FolderStore

        return FolderStore(folder)
