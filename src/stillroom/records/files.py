"""Reading and writing of record files (JSONL, Parquet, CSV, text) in bounded memory.

Reads ``.jsonl`` (also with ``.zst`` or ``.gz``), ``.parquet``, ``.json``, ``.csv`` and ``.txt`` by
suffix; writes JSONL (zstd too) and Parquet. Rows count from 1; in JSONL and text the row is the
line. Blank lines are skipped. The Parquet schema is fixed and not inferred: the open part of a
record, its ``fields``, is JSON text in one column.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, cast

from stillroom.errors import DataError
from stillroom.objects import ObjectFile, exists, is_address, open_for_writing
from stillroom.objects.disk import atomic_write, full_disk_as_error
from stillroom.records.formats import from_row
from stillroom.records.streams import (
    LINE_SUFFIXES,
    MAX_ROW_BYTES,
    TABLE_SUFFIXES,
    ByteSpan,
    find_suffix,
    iter_lines,
    iter_rows,
    open_parquet,
    row_too_large_error,
)
from stillroom.records.text_credentials import (
    add_credentials,
    has_credential,
    read_credentials,
    remove_marks,
)
from stillroom.records.types import Record

__all__ = [
    "RecordWriter",
    "count_records",
    "count_unread",
    "encode_record",
    "find_record_file",
    "read_records",
    "write_records",
]

_BATCH_ROWS = 4096
_BATCH_BYTES = 16 * 2**20
_COPIED_BYTES = 1 << 18
_UNESCAPED = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_CONVERSATION = frozenset(
    "tools functions messages conversations prompt completion chosen rejected history".split()  # noqa: SIM905
)
_DETAILS = re.compile(r"'[^']*'|\d+")
_MAX_KINDS = 5
OnDrop = Callable[[int, str], None]


def read_records(
    path: Path | str,
    *,
    format: str | None = None,
    on_drop: OnDrop | None = None,
    span: ByteSpan | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Record]:
    """Yield the records of a file one by one.

    Content credentials (C2PA) in a record's texts are read, become links of its origin, and are
    taken out of the texts.

    Args:
        path: The file, or a folder with ``records.jsonl``, ``.jsonl.zst`` or ``.parquet``; as text
            also the address of either in an object store (``s3://bucket/folder``).
        format: One of ``formats.FORMATS``; by default guessed row by row.
        on_drop: Called with the number and the reason of each unreadable row; without it the first
            such row raises. A damaged file raises in any case.
        span: Byte range to read from a file of lines, from ``streams.split_lines``; by default
            all. Rows are numbered from 1 in each.
        names: New names of keys by their old ones, for rows of no known format.

    Raises:
        DataError: If the file is missing, of no known suffix or damaged, or a row cannot be read.
    """
    file = find_record_file(path)
    suffix = find_suffix(file)
    is_table, is_parquet = suffix in TABLE_SUFFIXES, suffix == ".parquet"
    for number, row in iter_rows(file, span):
        try:
            if isinstance(row, DataError):
                raise row
            if is_parquet:
                row = {
                    key: _drop_absent(value) if key in _CONVERSATION else value
                    for key, value in row.items()
                }
            record = _take_credentials(from_row(row, format, names, is_table=is_table))
        except DataError as error:
            problem = error.problems[0]
            if problem.code == "data.format":
                raise
            if on_drop is None:
                raise DataError(
                    problem.what,
                    code=problem.code,
                    where=f"{file}, row {number}",
                    expected=problem.expected,
                    next=problem.next,
                ) from error
            wanted = f"; expected {problem.expected}" if problem.expected else ""
            on_drop(number, f"{problem.what}{wanted} ({problem.code})")
            continue
        yield record


def _drop_absent(value: Any) -> Any:
    """Leave null members out: in Parquet an object has those of all rows' objects, as nulls.

    A null that a call itself gave goes with them.
    """
    if isinstance(value, Mapping):
        return {key: _drop_absent(part) for key, part in value.items() if part is not None}
    return [_drop_absent(part) for part in value] if isinstance(value, list) else value


def count_unread(reasons: Sequence[str]) -> dict[str, int]:
    """Return the numbers of rows that ``on_drop`` was called with, by the first of each reason.

    Reasons that differ in numbers and quoted values count as one; those after the fifth together.

    Args:
        reasons: For each such row its number and reason, as ``row 4: ...``.
    """
    kinds: dict[str, list[str]] = {}
    for reason in reasons:
        kind = _DETAILS.sub("", reason)
        is_own = kind in kinds or len(kinds) < _MAX_KINDS
        kinds.setdefault(kind if is_own else "", []).append(reason)
    return {f"unreadable row, such as {rows[0]}": len(rows) for rows in kinds.values()}


def _take_credentials(record: Record) -> Record:
    """Return a record without the marks in its texts, and with what they say of its origin."""
    texts = [message.content for message in record.messages]
    texts += [value for value in record.fields.values() if isinstance(value, str)]
    if not any(map(has_credential, texts)):
        return record
    found = {one.manifest: one for text in texts for one in read_credentials(text)}
    messages = tuple(
        replace(message, content=remove_marks(message.content)) for message in record.messages
    )
    fields = {
        name: remove_marks(value) if isinstance(value, str) else value
        for name, value in record.fields.items()
    }
    return Record(messages, fields, add_credentials(record.origin, [*found.values()]))


def count_records(path: Path | str) -> int:
    """Return the number of rows of a file, readable or not.

    Raises:
        DataError: If the file is missing, of no known suffix, or damaged.
    """
    file = find_record_file(path)
    if find_suffix(file) == ".parquet":
        with open_parquet(file) as parquet:
            return int(parquet.metadata.num_rows)
    return sum(
        1 for _ in (iter_lines(file) if find_suffix(file) in LINE_SUFFIXES else iter_rows(file))
    )


def write_records(path: Path | str, records: Iterable[Record]) -> int:
    """Write all records to a file atomically; return their number.

    Raises:
        DataError: If the suffix is unknown, or a record cannot be written.
    """
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    return writer.count


def find_record_file(path: Path | str) -> Path:
    """Return the file of records at a path; for a folder, the one in it.

    For an address, return an ``ObjectFile``, which readers open like a path.

    Raises:
        DataError: If there is none.
    """
    if isinstance(path, str) and is_address(path):
        return cast("Path", _find_object(path))
    path = Path(path)
    if path.is_dir():
        for folder in (path, path / "output"):
            for suffix in (".jsonl", ".jsonl.zst", ".parquet"):
                if (folder / f"records{suffix}").is_file():
                    return folder / f"records{suffix}"
        raise DataError(
            f"{path} holds no records",
            code="data.missing",
            expected="records.jsonl, records.jsonl.zst or records.parquet in it",
            next="name the file itself",
        )
    if not path.is_file():
        raise DataError(
            f"{path} is a device or a pipe" if path.exists() else f"{path} does not exist",
            code="data.missing",
            expected="a file of records",
            next="check the path; in a recipe, relative paths start at its folder",
        )
    find_suffix(path)
    return path


def _find_object(address: str) -> ObjectFile:
    if exists(address):
        file = ObjectFile(address)
        find_suffix(file)
        return file
    for folder in (address.rstrip("/"), f"{address.rstrip('/')}/output"):
        for suffix in (".jsonl", ".jsonl.zst", ".parquet"):
            if exists(f"{folder}/records{suffix}"):
                return ObjectFile(f"{folder}/records{suffix}")
    raise DataError(
        f"{address} holds no records",
        code="data.missing",
        expected="a file of records, or a folder with records.jsonl",
        next="check bucket and name",
    )


class RecordWriter:
    """Writes records one by one; the file appears if the ``with`` block succeeds.

    On any exception the file keeps its old bytes, or stays missing. Equal records in equal order
    give equal bytes.
    """

    def __init__(self, path: Path | str) -> None:
        """Prepare to write ``path``, whose suffix selects JSONL, zstd JSONL or Parquet.

        As text, ``path`` may be an address in an object store.

        Raises:
            DataError: If the suffix is none of these.
        """
        self._address = path if isinstance(path, str) and is_address(path) else ""
        self.path = path = Path(path)
        self.count = 0
        suffix = find_suffix(path)
        if suffix not in _SINKS:
            raise DataError(
                f"records are not written as {suffix}",
                code="data.suffix",
                where=str(path),
                expected=".jsonl, .jsonl.zst or .parquet",
                next="give the file one of these suffixes",
            )
        self._kind = suffix

    def __enter__(self) -> RecordWriter:
        """Open a temporary file next to the target, or start a multipart upload."""
        self._open = self._begin()
        self._open.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Sync and rename, or remove the temporary file."""
        self._open.__exit__(kind, value, trace)

    @contextmanager
    def _begin(self) -> Iterator[None]:
        target = open_for_writing(self._address) if self._address else atomic_write(self.path, "wb")
        with target as file:
            self._sink = _SINKS[self._kind](file)
            try:
                yield
                self._sink.close()
            except BaseException:
                self._sink.abort()
                raise

    def write(self, record: Record) -> None:
        """Append one record.

        Raises:
            DataError: If a field is not plain JSON, or the record exceeds the row limit.
            ResourceError: If the disk is full.
        """
        with _unwritable_as_error(self.count + 1, self.path), full_disk_as_error(self.path):
            self._sink.write(record)
        self.count += 1

    def copy_lines(self, lines: IO[bytes], count: int) -> None:
        """Append lines from a file written with ``encode_record`` only.

        Raises:
            ResourceError: If the disk is full.
        """
        if self._kind in LINE_SUFFIXES:
            with full_disk_as_error(self.path):
                shutil.copyfileobj(lines, self._sink.file, _COPIED_BYTES)
            self.count += count
            return
        for line in lines:
            self.write(Record.from_json(json.loads(line)))


def encode_record(record: Record, number: int, path: Path) -> bytes:
    """Return the record's line in a file of records, including the line end.

    Raises:
        DataError: If a field is not plain JSON, or the record exceeds the row limit.
    """
    with _unwritable_as_error(number, path):
        return _encode_line(record)


def _encode_line(record: Record) -> bytes:
    row = record.to_json()
    try:
        line = _UNESCAPED.encode(row).encode()
    except UnicodeEncodeError:  # a lone surrogate: JSON can escape it, UTF-8 cannot
        line = json.dumps(row, allow_nan=False).encode()
    _check_size(len(line))
    return line + b"\n"


@contextmanager
def _unwritable_as_error(number: int, path: Path) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"record {number} cannot be written: {error}",
            code="data.write",
            where=str(path),
            expected="fields of plain JSON values and text of whole characters",
            next="convert the field before writing",
        ) from error


class _LineSink:
    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, record: Record) -> None:
        self.file.write(_encode_line(record))

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class _ZstdLineSink(_LineSink):
    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        super().__init__(zstandard.ZstdCompressor().stream_writer(file, closefd=False))

    def close(self) -> None:
        self.file.close()


class _ParquetSink:
    def __init__(self, file: IO[bytes]) -> None:
        import pyarrow.parquet

        self._schema = _record_schema()
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._size = 0

    def write(self, record: Record) -> None:
        row = record.to_json()
        row["fields"] = json.dumps(row["fields"], ensure_ascii=False, allow_nan=False)
        size = len(row["fields"]) + sum(len(turn["content"]) for turn in row["messages"])
        _check_size(size)
        for text in (row["fields"], *(turn["content"] for turn in row["messages"])):
            text.encode()  # rejects lone surrogates here, where the record is known
        self._rows.append(row)
        self._size += size
        if self._size >= _BATCH_BYTES or len(self._rows) >= _BATCH_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def abort(self) -> None:
        try:
            self._writer.close()
        except (OSError, ValueError):
            self._writer.is_open = False  # else garbage collection tries to close it again

    def _flush(self) -> None:
        import pyarrow

        if self._rows:
            batch = pyarrow.RecordBatch.from_pylist(self._rows, schema=self._schema)
            self._writer.write_batch(batch)
            self._rows, self._size = [], 0


_SINKS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".jsonl": _LineSink,
    ".ndjson": _LineSink,
    ".jsonl.zst": _ZstdLineSink,
    ".ndjson.zst": _ZstdLineSink,
    ".parquet": _ParquetSink,
}


def _record_schema() -> Any:
    import pyarrow as pa

    text = pa.string()
    link = pa.struct(
        [("method", text), ("model", text), ("parents", pa.list_(text)), ("prompt", text)]
    )
    return pa.schema(
        [
            ("id", text),
            ("messages", pa.list_(pa.struct([("role", text), ("content", text)]))),
            ("fields", text),
            ("origin", pa.struct([("kind", text), ("chain", pa.list_(link)), ("license", text)])),
        ]
    )


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_ROW_BYTES:
        raise row_too_large_error()
