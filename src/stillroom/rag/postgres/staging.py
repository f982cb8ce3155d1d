"""Staging: documents, passages, vectors and postings of a change go to the server by COPY.

All of it within the writer's one transaction, so that no reader ever sees a part.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.rag.engines.postings import FIELDS, Postings, write_postings
from stillroom.rag.postgres.connecting import Server, clean, copy_row, rows_of, term_key
from stillroom.rag.store.description import Description, open_analyzer
from stillroom.rag.store.fields import derive_fields
from stillroom.rag.store.parts import Part, mark_of
from stillroom.rag.store.schema import PASSAGE_BITS
from stillroom.rag.store.segments import postings_rows

if TYPE_CHECKING:
    import psycopg
    from numpy.typing import NDArray

__all__ = ["digest_batch", "replace_postings", "stage_parts"]

_LEVEL = 1
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_INT4, _INT8, _BYTEA = 23, 20, 17
_BATCH_DIGEST = (
    "SELECT count(*), encode(sha256(coalesce(string_agg(sha256(convert_to(term, 'UTF8') "
    "|| array_send(keys) || array_send(headings) || array_send(words) || array_send(spots)), "
    "''::bytea ORDER BY term), ''::bytea)), 'hex') FROM postings WHERE batch = :batch"
)


@dataclass(frozen=True, slots=True)
class _Fresh:
    """A part that the server does not hold yet, and the key of its content."""

    key: int
    part: Part
    id: str
    mark: str


def stage_parts(
    server: Server,
    connection: psycopg.Connection[Any],
    parts: Sequence[Part],
    description: Mapping[str, Any],
    batch: int,
    check: Callable[[], None],
) -> list[int]:
    """Write what documents became; return their contents' keys, in order.

    Args:
        server: The index's.
        connection: In the writer's transaction.
        parts: The documents.
        description: What shaped the index.
        batch: The number of the batch that they are.
        check: Called now and then; raises to stop.

    Raises:
        IntegrityError: If the server holds other passages under a document's id.
    """
    if not parts:
        return []
    keys, fresh = _find_fresh(server, connection, parts, check)
    if fresh:
        analyzer = open_analyzer(Description.from_json(description), "the index in PostgreSQL")
        with tempfile.TemporaryDirectory(prefix="stillroom-") as place:
            lines = (line for one in fresh for line in one.part.passage_lines())
            write_postings(Path(place), postings_rows(lines, analyzer, check))
            postings = Postings.open(Path(place))
            _copy_passages(connection, fresh, postings, check)
            check()
            _copy_postings(connection, fresh, postings, batch)
        kind = "halfvec" if description["settings"]["vectors"] == "float16" else "vector"
        matrices = _copy_vectors(connection, fresh, kind, check)
        _copy_contents(connection, fresh, matrices, batch)
        count, digest = digest_batch(connection, batch)
        connection.execute("INSERT INTO batches VALUES (%s, %s, %s)", (batch, count, digest))
    return keys


def replace_postings(
    connection: psycopg.Connection[Any],
    parts: Sequence[tuple[int, Part]],
    description: Mapping[str, Any],
    batch: int,
) -> None:
    """Make all postings anew, as one batch, within the writer's transaction.

    Args:
        connection: The writer's.
        parts: Every content with its key, by which they are ordered.
        description: What shaped the index.
        batch: The number of the batch.
    """
    fresh = [_Fresh(key, part, "", "") for key, part in parts]
    for sql in ("DELETE FROM postings", "DELETE FROM batches"):
        connection.execute(sql.encode())
    connection.execute("UPDATE contents SET batch = %s", (batch,))
    analyzer = open_analyzer(Description.from_json(description), "the index in PostgreSQL")
    with tempfile.TemporaryDirectory(prefix="stillroom-") as place:
        lines = (line for one in fresh for line in one.part.passage_lines())
        write_postings(Path(place), postings_rows(lines, analyzer))
        _copy_postings(connection, fresh, Postings.open(Path(place)), batch)
    count, digest = digest_batch(connection, batch)
    connection.execute("INSERT INTO batches VALUES (%s, %s, %s)", (batch, count, digest))


def digest_batch(connection: psycopg.Connection[Any], batch: int) -> tuple[int, str]:
    """Return how many rows of postings a batch has, and their digest."""
    found = rows_of(connection, _BATCH_DIGEST, {"batch": batch})
    return int(found[0][0]), str(found[0][1])


def _find_fresh(
    server: Server,
    connection: psycopg.Connection[Any],
    parts: Sequence[Part],
    check: Callable[[], None],
) -> tuple[list[int], list[_Fresh]]:
    """Return every part's content's key, and the parts that are new."""
    told = []
    for number, part in enumerate(parts):
        if number % 64 == 0:
            check()
        line = part.document_line()
        told.append((json.loads(line)["id"], mark_of(line, part.passage_lines())))
    held = {
        name: (int(key), str(mark))
        for name, key, mark in rows_of(
            connection,
            "SELECT id, key, mark FROM contents WHERE id = ANY(:ids)",
            {"ids": [name for name, _ in told]},
        )
    }
    top = int(rows_of(connection, "SELECT coalesce(max(key), 0) FROM contents")[0][0])
    keys, fresh = [], []
    for (name, mark), part in zip(told, parts, strict=True):
        if name in held and held[name][1] != mark:
            raise server.damaged(f"{part.entry.path} gives other passages than before")
        if name not in held:
            top += 1
            held[name] = (top, mark)
            fresh.append(_Fresh(top, part, name, mark))
        keys.append(held[name][0])
    return keys, fresh


def _copy_passages(
    connection: psycopg.Connection[Any],
    fresh: Sequence[_Fresh],
    postings: Postings,
    check: Callable[[], None],
) -> None:
    row = 0
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "COPY passages(key, id, embedded, truncated, body, headings, words) FROM STDIN"
        ) as copy,
    ):
        for one in fresh:
            check()
            marks, lines = one.part.marks(), one.part.passage_lines()
            for position, (body, mark) in enumerate(zip(lines, marks, strict=True)):
                headings, words = postings.lengths[row]
                key = (one.key << PASSAGE_BITS) + position
                name = json.loads(body)["id"]
                copy.write_row(
                    (
                        key,
                        name,
                        mark.embedded,
                        int(mark.is_truncated),
                        body,
                        int(headings),
                        int(words),
                    )
                )
                row += 1


def _copy_contents(
    connection: psycopg.Connection[Any],
    fresh: Sequence[_Fresh],
    matrices: Sequence[str],
    batch: int,
) -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "COPY contents(key, id, path, digest, mark, passages, truncated, fields, body, "
            "matrix, batch) FROM STDIN"
        ) as copy,
    ):
        for one, matrix in zip(fresh, matrices, strict=True):
            line, entry = one.part.document_line(), one.part.entry
            fields = json.dumps(derive_fields(json.loads(line)))
            copy.write_row(
                (
                    one.key,
                    one.id,
                    clean(entry.path),
                    entry.digest,
                    one.mark,
                    entry.passages,
                    entry.truncated,
                    fields,
                    zlib.compress(line, _LEVEL),
                    matrix,
                    batch,
                )
            )


def _copy_vectors(
    connection: psycopg.Connection[Any],
    fresh: Sequence[_Fresh],
    kind: str,
    check: Callable[[], None],
) -> list[str]:
    """Write vectors in pgvector's wire form; return the digest of each content's."""
    digests = []
    longest = 0.0
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY vectors(key, content, vector) FROM STDIN (FORMAT binary)") as copy,
    ):
        copy.write(_HEADER)
        for one in fresh:
            check()
            matrix = np.asarray(one.part.vectors())
            stored = matrix.astype(">f2" if kind == "halfvec" else ">f4")
            full = stored.astype(">f4")
            head = matrix.shape[1].to_bytes(2, "big") + bytes(2)
            content = one.key.to_bytes(8, "big")
            for position, row in enumerate(stored):
                key = ((one.key << PASSAGE_BITS) + position).to_bytes(8, "big")
                copy.write(copy_row([key, content, head + row.tobytes()]))
            digests.append(
                hashlib.sha256(b"".join(head + row.tobytes() for row in full)).hexdigest()
            )
            norms = np.linalg.norm(full.astype(np.float64), axis=1)
            longest = max(longest, float(norms.max(initial=0.0)))
        copy.write(b"\xff\xff")
    connection.execute(
        "INSERT INTO settings VALUES ('longest', %s) ON CONFLICT (name) DO UPDATE "
        "SET value = greatest(settings.value::float8, excluded.value::float8)::text",
        (repr(longest),),
    )
    return digests


def _copy_postings(
    connection: psycopg.Connection[Any], fresh: Sequence[_Fresh], postings: Postings, batch: int
) -> None:
    counts = [one.part.entry.passages for one in fresh]
    starts = np.repeat(np.array([one.key << PASSAGE_BITS for one in fresh]), counts)
    steps = np.concatenate([np.arange(count) for count in counts])
    keys = (starts + steps).astype(np.int64)
    number = batch.to_bytes(8, "big", signed=True)
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "COPY postings(term, batch, keys, headings, words, spots) FROM STDIN (FORMAT binary)"
        ) as copy,
    ):
        copy.write(_HEADER)
        for term, *arrays in _pack_postings(postings, keys):
            copy.write(copy_row([term, number, *arrays]))
        copy.write(b"\xff\xff")


def _pack_postings(
    postings: Postings, keys: NDArray[np.int64]
) -> Iterator[tuple[bytes, bytes, bytes, bytes, bytes]]:
    """Yield each term with its arrays in the wire's form."""
    for number, word in enumerate(postings.terms()):
        rows, headings, words = postings.look_up(number)
        spots = _spots(postings, number, headings, words)
        yield (
            term_key(word.decode("utf-8", "surrogatepass")).encode(),
            _array(keys[rows], ">i8", _INT8),
            _array(headings, ">i4", _INT4),
            _array(words, ">i4", _INT4),
            _bytes_array(spots),
        )


def _spots(
    postings: Postings, number: int, headings: NDArray[Any], words: NDArray[Any]
) -> list[bytes]:
    """Return for each row of a term its positions, those in headings first."""
    parts = []
    for field, counts in zip(FIELDS, (headings, words), strict=True):
        _, places = postings.occurrences(number, field)
        ends = np.cumsum(counts, dtype=np.int64)
        data = places.astype("<i4").tobytes()
        begins = ends - counts
        parts.append(
            [data[4 * a : 4 * b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
        )
    return [a + b for a, b in zip(*parts, strict=True)]


def _array(values: NDArray[Any], dtype: str, kind: int) -> bytes:
    """Return a one-dimensional array of numbers in the wire's form."""
    size = np.dtype(dtype).itemsize
    packed = np.empty(len(values), dtype=[("size", ">i4"), ("value", dtype)])
    packed["size"], packed["value"] = size, values
    return _array_head(len(values), kind) + packed.tobytes()


def _bytes_array(values: Sequence[bytes]) -> bytes:
    body = b"".join(part for one in values for part in (len(one).to_bytes(4, "big"), one))
    return _array_head(len(values), _BYTEA) + body


def _array_head(count: int, kind: int) -> bytes:
    numbers = [1, 0, kind, count, 1]
    return b"".join(number.to_bytes(4, "big") for number in numbers)
