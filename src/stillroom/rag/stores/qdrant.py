"""Store the vectors in a Qdrant collection; documents, words and snapshots stay in the folder.

Term weights and token vectors also stay there, so that every retriever works.

Source: HNSW by Malkov and Yashunin 2016, arXiv:1603.09320, in Qdrant's implementation. Search is
exact unless the recipe's ``dense.search`` sets another mode; scores equal the folder store's.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import AuxiliaryVectorStore
from stillroom.rag.storage.snapshots import read_store_file, write_store_file
from stillroom.recipes import Secret

if TYPE_CHECKING:
    from stillroom.rag.storage.protocol import IndexStorage, IndexWriter
    from stillroom.rag.storage.qdrant.collection import QdrantCollection

__all__ = ["Qdrant"]


class Qdrant(AuxiliaryVectorStore):
    """Qdrant; its address is read from an environment variable and never stored."""

    paper: ClassVar[str] = "arXiv:1603.09320"

    address: Secret = Field(
        Secret("${env:STILLROOM_QDRANT}"),
        description="URL of a server, as ${env:NAME}; a path uses the client's local mode",
    )
    key: Secret | None = Field(None, description="API key of the server, as ${env:NAME}")
    prefix: str = Field(
        "stillroom",
        pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,39}$",
        description="prefix of the name of an index's collection; the rest is random",
    )
    m: int = Field(16, ge=2, le=100, description="links per vector in the HNSW index")
    ef_construction: int = Field(
        128, ge=4, le=1000, description="candidates per insertion while the HNSW index is built"
    )

    @override
    def create(self, folder: Path, description: Mapping[str, Any]) -> IndexWriter:
        from stillroom.rag.storage.qdrant.store import QdrantIndexWriter

        folder.mkdir(parents=True, exist_ok=True)
        previous = read_store_file(folder)
        if previous:  # left by an attempt that was killed
            self._points(folder, previous).drop()
        config = {"collection": f"{self.prefix}_{secrets.token_hex(8)}"}
        write_store_file(folder, self, config)
        points = self._points(folder, config)
        width = int(description["embedder"]["dimensions"])
        points.create(width, m=self.m, ef_construction=self.ef_construction)
        writer = QdrantIndexWriter.create(folder, description)
        writer.points = points
        return writer

    @override
    def open(self, folder: Path, config: Mapping[str, Any]) -> IndexStorage:
        from stillroom.rag.storage.qdrant.store import QdrantStore

        return QdrantStore(folder, self._points(folder, config))

    def _points(self, folder: Path, config: Mapping[str, Any]) -> QdrantCollection:
        from stillroom.rag.storage.qdrant.collection import QdrantCollection

        return QdrantCollection(self.address, self.key, str(config.get("collection", "")), folder)
