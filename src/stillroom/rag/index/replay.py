"""Documents as segments of an index, and the content of a finished index that a replay reuses.

A replay builds the index again: documents that were drawn are parsed, cut and embedded anew, the
others are taken from the finished index, and all files are written from both.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.jobs.segments import SegmentOutcome
from stillroom.provenance import digest_bytes, digest_json
from stillroom.provenance.sources import LEDGER
from stillroom.rag.ingestion.preparation import FailedDocument
from stillroom.rag.storage.filters import FIRST_INEXACT, list_values
from stillroom.rag.storage.protocol import ReusableContent
from stillroom.rag.types import AuxiliaryVectors, DocumentMetadata, StagedDocument

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job

__all__ = ["DrawnContent", "commit_document", "compare_catalogs", "name_document"]


def name_document(path: str) -> str:
    """Return the name of a document's segment."""
    return f"documents/{path}"


def commit_document(
    job: Job, path: str, digest: str, part: StagedDocument | FailedDocument
) -> None:
    """Commit a document's segment: digests of its bytes, and of its text, passages and vectors."""
    if isinstance(part, FailedDocument):
        result = digest_json([part.path, part.code, part.reason])
    else:
        vectors, extras = part.vectors(), part.extras()
        result = digest_json(
            [
                digest_bytes(part.document_line()),
                [digest_bytes(line) for line in part.passage_lines()],
                [[mark.embedded.hex(), mark.is_truncated] for mark in part.marks()],
                [str(vectors.dtype), vectors.shape, digest_bytes(vectors.tobytes())],
                _digest_extras(extras),
            ]
        )
    job.commit(name_document(path), digest, result)


def _digest_extras(extras: AuxiliaryVectors) -> list[str]:
    """Return the digests of the term weights and token vectors, wherever they are stored."""
    digests = []
    if extras.weights is not None:
        digests += [digest_bytes(b"\n".join(extras.weights.words()))]
        digests += [digest_bytes(array.tobytes()) for array in extras.weights.postings()]
    if (tokens := extras.tokens) is not None:
        starts = tokens.starts - tokens.starts[0]
        digests += [digest_bytes(part.tobytes()) for part in (tokens.tokens, starts, tokens.scales)]
    return digests


class DrawnContent:
    """Reusable content without the drawn documents.

    A text that stands in several documents was embedded with the first of them; its vector is
    reused for the later ones only, since the batch may matter in the last bit.
    """

    def __init__(self, content: ReusableContent, job: Job) -> None:
        self._content, self._job = content, job
        self._hidden: set[bytes] = set()
        seen: set[bytes] = set()
        for part, _ in content.list_parts():  # in order of path, as they were embedded
            marks = {mark.embedded for mark in part.marks()} - seen
            seen |= marks
            if job.is_drawn(name_document(part.entry.path)):
                self._hidden |= marks

    @property
    def description(self) -> Mapping[str, Any]:
        """Description of the index."""
        return self._content.description

    def take(self, path: str, digest: str) -> StagedDocument | None:
        """Return the document of a path and digest, unless it was drawn."""
        is_drawn = self._job.is_drawn(name_document(path))
        return None if is_drawn else self._content.take(path, digest)

    def find_same(self, digest: str) -> Sequence[StagedDocument]:
        """Return no document: each is a segment of its own."""
        return ()

    def list_parts(self) -> Sequence[tuple[StagedDocument, DocumentMetadata]]:
        """Return every document with its metadata, in order of path."""
        return self._content.list_parts()

    def vector_of(self, embedded: bytes) -> tuple[NDArray[Any], bool] | None:
        """Return the vector of a text that no drawn document brought in."""
        return None if embedded in self._hidden else self._content.vector_of(embedded)

    def extras_of_text(self, embedded: bytes) -> AuxiliaryVectors | None:
        """Return the auxiliary vectors of a text that no drawn document brought in."""
        return None if embedded in self._hidden else self._content.extras_of_text(embedded)

    def close(self) -> None:
        """Release the snapshot."""
        self._content.close()


_TIMED_COLUMNS = {"snapshots": "made"}
_KEYED_COLUMNS = ("path", "id", "name", "number")
"""Columns that name a row, the best name first."""
_SHOWN_ROWS = 3
_ROUNDED = "SELECT 1 FROM fields WHERE kind = 'number' AND abs(value) >= ? LIMIT 1"


def compare_catalogs(
    stored: Path, built: Path, restore: Callable[[str, str], str] = lambda text, _: text
) -> SegmentOutcome:
    """Return an outcome that names the first rows in which a repeated index's catalog differs.

    Catalog files differ in the time of the snapshot, so they are not compared byte for byte.
    ``restore`` puts the former places of moved inputs into a text where another has them.
    """
    name = f"output/{LEDGER}"
    try:
        with closing(_open_catalog(stored)) as old, closing(_open_catalog(built)) as new:
            differing = list(itertools.islice(_compare_tables(old, new, restore), _SHOWN_ROWS + 1))
    except sqlite3.Error as error:
        return SegmentOutcome(name, "", "", f"cannot be read: {error}")
    more = "; and more" if len(differing) > _SHOWN_ROWS else ""
    what = "differs: " + "; ".join(differing[:_SHOWN_ROWS]) + more if differing else ""
    return SegmentOutcome(name, "", "", what)


def _open_catalog(output: Path) -> sqlite3.Connection:
    address = f"{(output / LEDGER).absolute().as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(address, uri=True)


def _compare_tables(
    old: sqlite3.Connection, new: sqlite3.Connection, restore: Callable[[str, str], str]
) -> Iterator[str]:
    """Yield what differs between two catalogs, table by table."""
    query = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
    old_schema, new_schema = (catalog.execute(query).fetchall() for catalog in (old, new))
    if old_schema != new_schema:
        yield "its tables and views are not those of an index"
        return
    for entry_type, table, _ in new_schema:
        if entry_type == "table" and not table.startswith("sqlite_"):
            yield from _compare_table(table, old, new, restore)


def _compare_table(
    table: str, old: sqlite3.Connection, new: sqlite3.Connection, restore: Callable[[str, str], str]
) -> Iterator[str]:
    cursor = new.execute(f'SELECT * FROM "{table}" LIMIT 0')  # noqa: S608  # from our own schema
    columns = [column[0] for column in cursor.description]
    compared = ", ".join(f'"{name}"' for name in columns if name != _TIMED_COLUMNS.get(table))
    order = ", ".join(f'"{name}"' for name in columns)
    query = f'SELECT {compared} FROM "{table}" ORDER BY {order}'  # noqa: S608  # as above
    key_column = next((name for name in _KEYED_COLUMNS if name in columns), columns[0])
    key_index = columns.index(key_column)

    def compare(new_rows: Iterator[tuple[Any, ...]]) -> Iterator[str]:
        for old_row, new_row in itertools.zip_longest(old.execute(query), new_rows):
            if not _is_same(old_row, new_row, restore):
                change = "is added" if new_row is None else "is missing" if old_row is None else ""
                key = str((old_row or new_row)[key_index])
                yield f"the row {key_column} {key!r:.80} of {table} {change or 'was changed'}"

    found = compare(new.execute(query))
    if table == "fields" and old.execute(_ROUNDED, (FIRST_INEXACT,)).fetchone():
        plain = list(itertools.islice(found, _SHOWN_ROWS + 1))
        found = compare(_list_rounded_fields(new)) if plain else iter(())
    yield from found


def _is_same(
    old_row: tuple[Any, ...] | None,
    new_row: tuple[Any, ...] | None,
    restore: Callable[[str, str], str],
) -> bool:
    """Return whether two rows are equal, with the former places where the present ones differ."""
    if old_row is None or new_row is None:
        return False
    return all(
        old == new or (isinstance(new, str) and isinstance(old, str) and old == restore(new, old))
        for old, new in zip(old_row, new_row, strict=True)
    )


def _list_rounded_fields(catalog: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """Yield a catalog's rows of fields as an earlier version wrote them: large numbers rounded."""
    query = (
        "SELECT d.key, c.fields, d.fields FROM documents d JOIN contents c ON c.key = d.content "
        "ORDER BY d.key"
    )
    for key, derived, given in catalog.execute(query):
        values = list_values({**json.loads(derived), **json.loads(given)}, rounded=True)
        yield from sorted((key, *value) for value in values)
