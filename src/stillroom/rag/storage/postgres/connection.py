"""PostgreSQL connections, error translation, and table definitions.

Text that a column cannot store (NUL, half surrogates) is replaced both when stored and when
compared; bodies are stored as bytes, unchanged.

As in the folder's catalog, a row of ``documents`` is visible in the snapshots from ``born`` up to
but not including ``died``. A row of ``postings`` lists, for one term, the passages of one batch
that contain it, its counts in headings and in text, and its positions (``spots``, int32 each,
headings first); a batch is the postings of one change. ``matrix`` is the digest of a content's
vectors.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import IntegrityError, MissingExtraError, RecipeError, ResourceError
from stillroom.rag.storage.filters import SqlDialect
from stillroom.rag.storage.snapshots import FOREVER

if TYPE_CHECKING:
    import psycopg

    from stillroom.recipes import Secret

__all__ = [
    "FORMAT",
    "POSTGRES_DIALECT",
    "PostgresSchema",
    "build_term_key",
    "compute_lock_id",
    "encode_copy_row",
    "fetch_rows",
    "list_create_statements",
    "sanitize_column_text",
    "translate_parameters",
]


if TYPE_CHECKING:
    Connection = psycopg.Connection[Any]


_PARAMETER = re.compile(r"(?<!:):([a-z_]\w*)")
_UNSAFE = re.compile("[\x00\ud800-\udfff]")
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_MIN_SERVER_VERSION = 150_000
_MAX_TERM = 400


def sanitize_column_text(text: str) -> str:
    """Return a text in the form that a column can store."""
    return _UNSAFE.sub("\ufffd", text)


def _translate_like(pattern: str) -> str:
    """Return a pattern with * and ? in the syntax of LIKE."""
    escaped = re.sub(r"([\\%_])", r"\\\1", sanitize_column_text(pattern))
    return escaped.replace("*", "%").replace("?", "_")


POSTGRES_DIALECT = SqlDialect("words", "number", "LIKE", _translate_like, sanitize_column_text)


def translate_parameters(sql: str) -> bytes:
    """Return a statement with its parameters (``:name``) in psycopg's syntax."""
    return _PARAMETER.sub(r"%(\1)s", sql).encode()


def fetch_rows(connection: Any, sql: str, values: Mapping[str, Any] | None = None) -> list[Any]:
    """Return all rows of a statement with named parameters."""
    rows: list[Any] = connection.execute(translate_parameters(sql), values or {}).fetchall()
    return rows


def compute_lock_id(schema: str) -> int:
    """Return the 32-bit id of the advisory locks of a schema's index."""
    return int.from_bytes(hashlib.sha256(schema.encode()).digest()[:4], "big", signed=True)


def build_term_key(term: str) -> str:
    """Return the key of a term in the postings: the term, or the digest of a very long one."""
    data = sanitize_column_text(term)
    if len(data.encode()) <= _MAX_TERM:
        return data
    return f"{data[:40]}\u2026{hashlib.sha256(term.encode('utf-8', 'surrogatepass')).hexdigest()}"


class PostgresSchema:
    """A server and the schema of one index."""

    def __init__(self, address: Secret, schema: str, folder: Path) -> None:
        """Refer to an index; no connection is opened yet.

        Raises:
            IntegrityError: If the schema's name is not valid.
        """
        if not _SCHEMA.fullmatch(schema):
            raise IntegrityError(
                f"{schema!r:.80} is not a valid schema name",
                code="rag.index-damaged",
                where=str(folder),
                expected="lower-case letters, digits and underscores",
                next=f"stillroom verify {folder.parent}",
            )
        self.address, self.schema, self.folder = address, schema, folder

    @property
    def where(self) -> Path:
        """Path of the schema, for errors."""
        return self.folder / f"postgres:{self.schema}"

    def connect(self, purpose: str) -> Connection:
        """Open a connection in autocommit mode, with the schema in the search path.

        Raises:
            MissingExtraError: If psycopg is not installed.
            ResourceError: If the server cannot be reached.
            RecipeError: If the environment variable of the address is not set.
        """
        psycopg = _import_psycopg()
        with self.errors():
            try:
                connection: Connection = psycopg.connect(
                    self.address.reveal(),
                    autocommit=True,
                    prepare_threshold=5,
                    application_name=f"stillroom {purpose} {os.getpid()} {' '.join(sys.argv[1:3])}"[
                        :60
                    ],
                )
            except psycopg.ProgrammingError:
                raise RecipeError(
                    f"{self.address.reference} is not a connection string",
                    code="rag.store-address",
                    where=str(self.folder),
                    expected="postgresql://USER:PASSWORD@HOST/DATABASE, or key=value pairs",
                    next="set it again; psql must accept the same text",
                ) from None  # the error's text may contain a password
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _prepare(self, connection: psycopg.Connection[Any]) -> None:
        row = connection.execute(
            "SELECT n.nspname, current_setting('server_encoding'), "
            "current_setting('server_version_num')::int FROM (SELECT 1) one "
            "LEFT JOIN pg_extension e ON e.extname = 'vector' "
            "LEFT JOIN pg_namespace n ON n.oid = e.extnamespace"
        ).fetchone()
        extension_schema, encoding, version = row or (None, "", 0)
        if encoding != "UTF8" or version < _MIN_SERVER_VERSION:
            raise self._unfit(f"it has encoding {encoding} and version {version // 10_000}")
        path = f'"{self.schema}", "{extension_schema or "public"}"'
        connection.execute("SELECT set_config('search_path', %s, false)", (path,))

    def create_extension(self, connection: psycopg.Connection[Any]) -> None:
        """Create the extension pgvector in the database if necessary.

        Raises:
            ResourceError: If it is missing and cannot be created.
        """
        psycopg = _import_psycopg()
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.Error as error:
            raise self._unfit(
                f"the extension vector cannot be used: {_first_line(error)}"
            ) from error
        with self.errors():
            self._prepare(connection)

    def has_schema(self, connection: psycopg.Connection[Any]) -> bool:
        """Return whether the index's schema exists."""
        row = connection.execute(
            "SELECT 1 FROM pg_namespace WHERE nspname = %s", (self.schema,)
        ).fetchone()
        return row is not None

    def drop(self, connection: psycopg.Connection[Any]) -> None:
        """Remove the schema with all its tables."""
        connection.execute(f'DROP SCHEMA IF EXISTS "{self.schema}" CASCADE'.encode())

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Translate errors of the server in the body.

        Raises:
            ResourceError: If the server cannot be reached, or its disk is full.
            IntegrityError: If its data have changed.
        """
        psycopg = _import_psycopg()
        try:
            yield
        except psycopg.errors.UndefinedTable as error:
            raise self.damaged(f"the server has no such table: {_first_line(error)}") from error
        except psycopg.OperationalError as error:
            raise ResourceError(
                f"the database does not answer: {_first_line(error)}",
                code="rag.store-unreachable",
                where=str(self.where),
                expected=f"a server at {self.address.reference} with room on its disk",
                next="check that it runs and that psql reaches it with the same address",
            ) from error
        except psycopg.Error as error:
            raise self.damaged(_first_line(error)) from error

    def damaged(self, reason: str) -> IntegrityError:
        """Return an error for a damaged index."""
        return IntegrityError(
            f"the index is damaged: {reason}",
            code="rag.index-damaged",
            where=str(self.where),
            expected="the data that were written",
            next="stillroom rag verify INDEX, restore a backup, or build the index again",
        )

    def _unfit(self, reason: str) -> ResourceError:
        return ResourceError(
            f"the database cannot store an index: {reason}",
            code="rag.store-unfit",
            where=str(self.where),
            expected="PostgreSQL 15 or newer in UTF-8, with pgvector 0.7 or newer",
            next="install the package postgresql-NN-pgvector, and have a superuser run "
            "CREATE EXTENSION vector in the database",
        )


def _import_psycopg() -> Any:
    """Return the module psycopg.

    Raises:
        MissingExtraError: If it is not installed.
    """
    with MissingExtraError.guard("psycopg", "postgres", "an index in PostgreSQL"):
        import psycopg
        import psycopg.errors
    return psycopg


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def encode_copy_row(values: Sequence[bytes]) -> bytes:
    """Return a row of a binary COPY from values in the binary format."""
    parts = [len(values).to_bytes(2, "big")]
    for value in values:
        parts += [len(value).to_bytes(4, "big"), value]
    return b"".join(parts)


FORMAT = 1
_MAX_PLAIN_DIMENSIONS = 1_900
"""Number of float32 values that fit in a page; larger vectors are stored out of line."""


def list_create_statements(kind: str, dimensions: int) -> str:
    """Return the statements that create the tables in the first schema of the search path."""
    size = dimensions if kind == "vector" else dimensions // 2
    storage = " STORAGE PLAIN" if size <= _MAX_PLAIN_DIMENSIONS else ""
    return _TABLES.format(forever=FOREVER, column=f"{kind}({dimensions}){storage}")


_TABLES = """
CREATE TABLE settings(name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE snapshots(
  number bigint PRIMARY KEY, digest text NOT NULL, parent bigint NOT NULL, reason text NOT NULL,
  documents bigint NOT NULL, passages bigint NOT NULL, truncated bigint NOT NULL,
  made text NOT NULL);
CREATE TABLE contents(
  key bigint PRIMARY KEY, id text NOT NULL UNIQUE, path text COLLATE "C" NOT NULL,
  digest text NOT NULL, mark text NOT NULL, passages integer NOT NULL, truncated integer NOT NULL,
  fields text NOT NULL, body bytea NOT NULL, matrix text NOT NULL, batch bigint NOT NULL);
CREATE INDEX contents_by_digest ON contents(digest);
CREATE INDEX contents_by_batch ON contents(batch);
CREATE TABLE passages(
  key bigint PRIMARY KEY, id text NOT NULL UNIQUE, embedded bytea NOT NULL,
  truncated integer NOT NULL, body bytea NOT NULL, headings integer NOT NULL,
  words integer NOT NULL);
CREATE INDEX passages_by_text ON passages(embedded);
CREATE TABLE vectors(key bigint PRIMARY KEY, content bigint NOT NULL, vector {column} NOT NULL);
CREATE INDEX vectors_by_content ON vectors(content);
CREATE TABLE documents(
  key bigint PRIMARY KEY, content bigint NOT NULL, path text COLLATE "C" NOT NULL,
  passages integer NOT NULL, truncated integer NOT NULL, bucket integer NOT NULL,
  mark text NOT NULL, tenant text COLLATE "C" NOT NULL, labels text NOT NULL, fields text NOT NULL,
  born bigint NOT NULL, died bigint NOT NULL DEFAULT {forever});
CREATE INDEX documents_by_path ON documents(path, died);
CREATE INDEX documents_by_bucket ON documents(bucket, died);
CREATE INDEX documents_by_content ON documents(content);
CREATE INDEX documents_by_tenant ON documents(tenant);
CREATE INDEX documents_by_birth ON documents(born);
CREATE INDEX documents_by_death ON documents(died);
CREATE TABLE labels(document bigint NOT NULL, label text COLLATE "C" NOT NULL,
  PRIMARY KEY(document, label));
CREATE INDEX labels_by_label ON labels(label, document);
CREATE TABLE fields(document bigint NOT NULL, name text COLLATE "C" NOT NULL, kind text NOT NULL,
  words text COLLATE "C", number double precision);
CREATE INDEX fields_by_number ON fields(name, number);
CREATE INDEX fields_by_document ON fields(document);
CREATE TABLE failures(
  path text COLLATE "C" NOT NULL, code text NOT NULL, reason text NOT NULL,
  born bigint NOT NULL, died bigint NOT NULL DEFAULT {forever});
CREATE TABLE buckets(number integer PRIMARY KEY, digest text NOT NULL);
CREATE TABLE batches(number bigint PRIMARY KEY, postings bigint NOT NULL, digest text NOT NULL);
CREATE TABLE postings(
  term text COLLATE "C" NOT NULL, batch bigint NOT NULL, keys bigint[] NOT NULL,
  headings integer[] NOT NULL, words integer[] NOT NULL, spots bytea[] NOT NULL,
  PRIMARY KEY(term, batch));
CREATE INDEX postings_by_batch ON postings(batch);
"""
