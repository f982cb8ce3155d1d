"""Store the index in a PostgreSQL schema with pgvector: one server, many machines.

Source: pgvector (HNSW by Malkov and Yashunin 2016, arXiv:1603.09320). Differs from a plain table of
vectors: keyword search, snapshots, tenants and digests equal those of the folder store, and search
is exact unless the recipe's ``dense.search`` sets another mode.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import IndexStore
from stillroom.rag.storage.snapshots import read_store_file, write_store_file
from stillroom.recipes import Secret

if TYPE_CHECKING:
    from stillroom.rag.storage.protocol import IndexStorage, IndexWriter

__all__ = ["Postgres"]


class Postgres(IndexStore):
    """PostgreSQL with pgvector; its address is read from the environment and never stored."""

    paper: ClassVar[str] = "arXiv:1603.09320"

    address: Secret = Field(
        Secret("${env:STILLROOM_POSTGRES}"),
        description="connection string as for psql, as ${env:NAME}",
    )
    prefix: str = Field(
        "stillroom",
        pattern=r"^[a-z_][a-z0-9_]{0,39}$",
        description="prefix of the name of an index's schema; the rest is random",
    )
    m: int = Field(
        16, ge=2, le=100, description="links per vector in the HNSW index of approximate search"
    )
    ef_construction: int = Field(
        128, ge=4, le=1000, description="candidates per insertion while the HNSW index is built"
    )

    @override
    def create(self, folder: Path, description: Mapping[str, Any]) -> IndexWriter:
        from stillroom.rag.storage.postgres.connection import PostgresSchema
        from stillroom.rag.storage.postgres.writer import PostgresIndexWriter

        folder.mkdir(parents=True, exist_ok=True)
        previous = read_store_file(folder)
        if previous:  # left by an attempt that was killed
            self.open(folder, previous).discard()
        schema = f"{self.prefix}_{secrets.token_hex(8)}"
        write_store_file(folder, self, {"schema": schema})
        server = PostgresSchema(self.address, schema, folder)
        return PostgresIndexWriter.create(server, description, self._graph)

    @override
    def open(self, folder: Path, config: Mapping[str, Any]) -> IndexStorage:
        from stillroom.rag.storage.postgres.connection import PostgresSchema
        from stillroom.rag.storage.postgres.store import PostgresStore

        return PostgresStore(
            PostgresSchema(self.address, str(config.get("schema", "")), folder), self._graph
        )

    @property
    def _graph(self) -> dict[str, int]:
        return {"m": self.m, "ef_construction": self.ef_construction}
