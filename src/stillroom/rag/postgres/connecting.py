"""Connections to a server, and its errors in our words; the address is never shown or written.

Text that a column cannot hold (NUL, halves of surrogate pairs) is replaced where it is stored and
where it is compared alike; bodies are bytes and stay as they are.
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
from stillroom.rag.filters import Dialect

if TYPE_CHECKING:
    import psycopg

    from stillroom.recipes import Secret

    Connection = psycopg.Connection[Any]

__all__ = [
    "POSTGRES",
    "Server",
    "clean",
    "copy_row",
    "import_psycopg",
    "lock_number",
    "rows_of",
    "term_key",
    "translate",
]

_NAME = re.compile(r"(?<!:):([a-z_]\w*)")
_UNSAFE = re.compile("[\x00\ud800-\udfff]")
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_OLDEST = 150_000
_LONGEST_TERM = 400


def clean(text: str) -> str:
    """Return a text as a column can hold it."""
    return _UNSAFE.sub("\ufffd", text)


def _like(pattern: str) -> str:
    """Return a pattern of * and ? as LIKE has it."""
    told = re.sub(r"([\\%_])", r"\\\1", clean(pattern))
    return told.replace("*", "%").replace("?", "_")


POSTGRES = Dialect("words", "number", "LIKE", _like, clean)


def translate(sql: str) -> bytes:
    """Return one of our statements with its names (``:name``) as psycopg binds them."""
    return _NAME.sub(r"%(\1)s", sql).encode()


def rows_of(connection: Any, sql: str, values: Mapping[str, Any] | None = None) -> list[Any]:
    """Return all rows of a statement whose values have names."""
    found: list[Any] = connection.execute(translate(sql), values or {}).fetchall()
    return found


def lock_number(schema: str) -> int:
    """Return the number, of 32 bits, by which the index of a schema is locked."""
    return int.from_bytes(hashlib.sha256(schema.encode()).digest()[:4], "big", signed=True)


def term_key(term: str) -> str:
    """Return what a term is kept under: itself, or of a very long one its digest."""
    data = clean(term)
    if len(data.encode()) <= _LONGEST_TERM:
        return data
    return f"{data[:40]}\u2026{hashlib.sha256(term.encode('utf-8', 'surrogatepass')).hexdigest()}"


class Server:
    """A server, and the schema in it that holds one index."""

    def __init__(self, address: Secret, schema: str, folder: Path) -> None:
        """Stand for an index; nothing is opened yet.

        Args:
            address: The connection string, as the environment has it.
            schema: The index's.
            folder: Of the artifact's own files, for errors.

        Raises:
            IntegrityError: If the schema cannot be a name.
        """
        if not _SCHEMA.fullmatch(schema):
            raise IntegrityError(
                f"{schema!r:.80} is no name of a schema",
                code="rag.index-damaged",
                where=str(folder),
                expected="small letters, digits and underscores",
                next=f"stillroom verify {folder.parent}",
            )
        self.address, self.schema, self.folder = address, schema, folder

    @property
    def where(self) -> Path:
        """What errors name."""
        return self.folder / f"postgres:{self.schema}"

    def connect(self, purpose: str) -> Connection:
        """Open a connection in which every statement stands alone, and the schema is in the path.

        Args:
            purpose: What the server's list of sessions shows.

        Raises:
            MissingExtraError: If psycopg is not installed.
            ResourceError: If the server cannot be reached.
            RecipeError: If the variable of the address is not set.
        """
        psycopg = import_psycopg()
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
                    f"{self.address.reference} holds no connection string",
                    code="rag.store-address",
                    where=str(self.folder),
                    expected="postgresql://USER:PASSWORD@HOST/DATABASE, or key=value pairs",
                    next="export it again; psql must take the same text",
                ) from None  # the text of the error may hold a password
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
        home, encoding, version = row or (None, "", 0)
        if encoding != "UTF8" or version < _OLDEST:
            raise self._unfit(f"it has encoding {encoding} and version {version // 10_000}")
        path = f'"{self.schema}", "{home or "public"}"'
        connection.execute("SELECT set_config('search_path', %s, false)", (path,))

    def need_vectors(self, connection: psycopg.Connection[Any]) -> None:
        """Have the extension pgvector in the database.

        Raises:
            ResourceError: If it is not there and cannot be made.
        """
        psycopg = import_psycopg()
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.Error as error:
            raise self._unfit(f"the extension vector cannot be used: {_first(error)}") from error
        with self.errors():
            self._prepare(connection)

    def has_schema(self, connection: psycopg.Connection[Any]) -> bool:
        """Return whether the index's schema is there."""
        found = connection.execute(
            "SELECT 1 FROM pg_namespace WHERE nspname = %s", (self.schema,)
        ).fetchone()
        return found is not None

    def drop(self, connection: psycopg.Connection[Any]) -> None:
        """Remove the schema with all that it holds."""
        connection.execute(f'DROP SCHEMA IF EXISTS "{self.schema}" CASCADE'.encode())

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the server's errors within the body as ours.

        Raises:
            ResourceError: If the server cannot be reached, or has no room.
            IntegrityError: If it holds something else than was written.
        """
        psycopg = import_psycopg()
        try:
            yield
        except psycopg.errors.UndefinedTable as error:
            raise self.damaged(f"the server holds no such table: {_first(error)}") from error
        except psycopg.OperationalError as error:
            raise ResourceError(
                f"the database does not answer, or gives up: {_first(error)}",
                code="rag.store-unreachable",
                where=str(self.where),
                expected=f"a server at {self.address.reference} with room on its disk",
                next="check that it runs and that psql reaches it with the same address",
            ) from error
        except psycopg.Error as error:
            raise self.damaged(_first(error)) from error

    def damaged(self, reason: str) -> IntegrityError:
        """Return the error that says what of the index is not what was written."""
        return IntegrityError(
            f"the index is damaged: {reason}",
            code="rag.index-damaged",
            where=str(self.where),
            expected="what was written",
            next="stillroom rag verify INDEX, restore a backup, or build the index again",
        )

    def _unfit(self, reason: str) -> ResourceError:
        return ResourceError(
            f"the database cannot hold an index: {reason}",
            code="rag.store-unfit",
            where=str(self.where),
            expected="PostgreSQL 15 or newer in UTF-8, with pgvector 0.7 or newer",
            next="install the package postgresql-NN-pgvector, and have a superuser run "
            "CREATE EXTENSION vector in the database",
        )


def import_psycopg() -> Any:
    """Return the package.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import psycopg
        import psycopg.errors
    except ImportError as error:
        raise MissingExtraError.of(
            "psycopg", extra="postgres", purpose="an index in PostgreSQL"
        ) from error
    return psycopg


def _first(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def copy_row(values: Sequence[bytes]) -> bytes:
    """Return a row of a binary COPY, its values in the wire's form already."""
    parts = [len(values).to_bytes(2, "big")]
    for value in values:
        parts += [len(value).to_bytes(4, "big"), value]
    return b"".join(parts)
