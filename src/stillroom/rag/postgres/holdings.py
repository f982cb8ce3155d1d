"""What an index in PostgreSQL holds already: documents by path, vectors by text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.rag.postgres.vectors import read_matrix
from stillroom.rag.store.parts import Entry, Facts, Mark
from stillroom.rag.store.schema import FOREVER, PASSAGE_BITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stillroom.rag.postgres.reading import PostgresReading

__all__ = ["PostgresHoldings", "Stocked"]

_CONTENT = "SELECT {} FROM {} WHERE key >= :first AND key < :last ORDER BY key"


@dataclass(frozen=True, slots=True)
class Stocked:
    """A document that the server holds, read when it is asked for."""

    entry: Entry
    content: int
    held: PostgresHoldings

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return self.held.reading.document(self.content)

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""
        return [bytes(body) for (body,) in self._ask("body", "passages")]

    def marks(self) -> Sequence[Mark]:
        """Return what is known of each passage's vector."""
        rows = self._ask("embedded, truncated", "passages")
        return [Mark(bytes(embedded), bool(truncated)) for embedded, truncated in rows]

    def vectors(self) -> NDArray[np.float32]:
        """Return the passages' vectors, (N, D) float32."""
        rows = self._ask("vector_send(vector::vector)", "vectors")
        return read_matrix([data for (data,) in rows], self.held.reading.dimensions)

    def _ask(self, columns: str, table: str) -> list[Any]:
        span = {
            "first": self.content << PASSAGE_BITS,
            "last": (self.content + 1) << PASSAGE_BITS,
        }
        return self.held.reading.session.query(_CONTENT.format(columns, table), span)


class PostgresHoldings:
    """See ``stillroom.rag.store.protocol.Holdings``."""

    def __init__(self, reading: PostgresReading) -> None:
        """Read an open snapshot, the newest."""
        self.reading = reading

    @property
    def description(self) -> Mapping[str, Any]:
        """What shaped the index."""
        return self.reading.description

    def take(self, path: str, digest: str) -> Stocked | None:
        """Return the document of that path and digest, if there is one."""
        found = self._list("d.path = :path AND c.digest = :digest", path=path, digest=digest)
        return found[0][0] if found else None

    def find_same(self, digest: str) -> list[Stocked]:
        """Return the documents of the same bytes, in order of path."""
        return [part for part, _ in self._list("c.digest = :digest", digest=digest)]

    def list_parts(self) -> list[tuple[Stocked, Facts]]:
        """Return every document with its facts, in order of path."""
        return self._list("1 = 1")

    def vector_of(self, embedded: bytes) -> tuple[NDArray[np.float32], bool] | None:
        """Return the vector made of a text, by its digest, and whether the text was cut."""
        rows = self.reading.session.query(
            "SELECT vector_send(v.vector::vector), a.truncated FROM passages a "
            "JOIN vectors v ON v.key = a.key WHERE a.embedded = :embedded ORDER BY a.key LIMIT 1",
            {"embedded": embedded},
        )
        if not rows:
            return None
        data, truncated = rows[0]
        return read_matrix([data], self.reading.dimensions)[0], bool(truncated)

    def close(self) -> None:
        """Let the snapshot go."""
        self.reading.close()

    def _list(self, condition: str, **values: str) -> list[tuple[Stocked, Facts]]:
        rows = self.reading.session.query(
            "SELECT d.path, c.digest, c.passages, c.truncated, c.key, d.fields, d.tenant, "  # noqa: S608
            "d.labels FROM documents d JOIN contents c ON c.key = d.content "
            f"WHERE d.died = :now AND ({condition}) ORDER BY d.path",
            {"now": FOREVER, **values},
        )
        return [
            (
                Stocked(Entry(path, digest, int(passages), int(truncated)), int(key), self),
                Facts(json.loads(fields), tenant, tuple(json.loads(labels))),
            )
            for path, digest, passages, truncated, key, fields, tenant, labels in rows
        ]
