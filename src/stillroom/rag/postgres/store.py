"""PostgresStore: one index in a schema of a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillroom.rag.postgres.checking import check_digest, check_documents, check_tables
from stillroom.rag.postgres.connecting import Server
from stillroom.rag.postgres.holdings import PostgresHoldings
from stillroom.rag.postgres.reading import PostgresReading, Session
from stillroom.rag.postgres.writing import PostgresWriter
from stillroom.rag.store.checking import Damage
from stillroom.rag.store.manifest import renew_manifest
from stillroom.rag.store.protocol import StoreSize
from stillroom.rag.store.snapshots import Snapshot

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["PostgresStore"]

_SIZE = (
    "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relkind = 'r'"
)


@dataclass(frozen=True, slots=True)
class PostgresStore:
    """See ``stillroom.rag.store.protocol.Store``; ``graph`` are settings of an HNSW index."""

    server: Server
    graph: Mapping[str, int]

    def read(self, wanted: int | str | None = None, *, verify: bool) -> PostgresReading:
        """Open a snapshot, by default the newest.

        With ``verify`` the newest digest is recomputed from the marks of documents, and these from
        their fields, tenants and labels; texts, vectors and postings are held against their digests
        by ``check`` alone.

        Raises:
            DataError: If there is no such snapshot, or none any more.
            ResourceError: If the server cannot be reached.
            IntegrityError: If it does not hold the index, or another one.
        """
        reading = PostgresReading.open(self.server, wanted)
        try:
            if verify:
                for one in (*check_digest(reading), *check_documents(reading)):
                    raise self.server.damaged(one.what)
        except BaseException:
            reading.close()
            raise
        return reading

    def hold(self) -> PostgresHoldings:
        """Open the newest snapshot for taking over what it holds."""
        return PostgresHoldings(PostgresReading.open(self.server))

    def write(self) -> PostgresWriter:
        """Open for writing; a writer that was killed has left nothing.

        Raises:
            ResourceError: If another writer is at work, or the server cannot be reached.
        """
        return PostgresWriter.open(self.server, self.graph)

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots that can be opened, oldest first."""
        session = Session(self.server)
        try:
            return session.snapshots()
        finally:
            session.close()

    def check(self) -> list[Damage]:
        """Return everything that does not agree; none means sound."""
        reading = PostgresReading.open(self.server)
        try:
            return check_tables(reading)
        finally:
            reading.close()

    def repair(self, found: Sequence[Damage], embedder: Embedder | None) -> None:
        """Make postings again from passages where they are damaged, and the files beside.

        Raises:
            ResourceError: If another writer is at work, or the server cannot be reached.
        """
        with self.write() as writer:
            if any(one.path == "postings" for one in found):
                writer.renew_postings(PostgresHoldings(PostgresReading.open(self.server)))
            renew_manifest(writer)

    def measure(self) -> StoreSize:
        """Return how much the tables and their indexes take, and how many batches there are."""
        session = Session(self.server)
        try:
            taken = session.query(_SIZE, {"schema": self.server.schema})
            pieces = session.query("SELECT count(*) FROM batches")
            return StoreSize(int(taken[0][0]), int(pieces[0][0]), is_remote=True)
        finally:
            session.close()

    def discard(self) -> None:
        """Remove the schema with all that it holds.

        Raises:
            ResourceError: If the server cannot be reached.
        """
        connection = self.server.connect("writer")
        try:
            with self.server.errors():
                self.server.drop(connection)
        finally:
            connection.close()
