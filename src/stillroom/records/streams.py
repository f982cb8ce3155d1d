"""Streaming readers of JSONL, JSON, CSV, text and Parquet rows.

An unreadable row is yielded as an error, so that the reader may continue; damage to the file itself
raises.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from stillroom.errors import DataError
from stillroom.objects import ObjectFile
from stillroom.records.encodings import (
    BOM,
    decode_file,
    find_wide_encoding,
    make_encoding_error,
)

__all__ = [
    "LINE_SUFFIXES",
    "MAX_JSON_BYTES",
    "MAX_ROW_BYTES",
    "SUFFIXES",
    "TABLE_SUFFIXES",
    "ByteSpan",
    "find_suffix",
    "iter_lines",
    "iter_parquet_batches",
    "iter_rows",
    "open_parquet",
    "open_table",
    "row_too_large_error",
    "split_lines",
]

ByteSpan = tuple[int, int]
MAX_ROW_BYTES = 32 * 2**20
MAX_JSON_BYTES = 256 * 2**20
LINE_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.zst", ".ndjson.zst", ".jsonl.gz", ".ndjson.gz")
TABLE_SUFFIXES = (".csv", ".tsv")
SUFFIXES = (*LINE_SUFFIXES, ".parquet", ".json", *TABLE_SUFFIXES, ".txt")
_MAX_ZSTD_WINDOW = 2**27
_ZSTD_READ = 2**10
"""Compressed bytes per read; zstd can expand 4 bytes to 128 KiB, so this limits zip bombs."""
_QUOTED = re.compile(r'"[^"]*"')
_READ_ROWS = 2**16
_BATCH_ROWS = 512
_BATCH_BYTES = 16 * 2**20
_VALUES_PER_BYTE = 4  # of a large file, whose columns may be packed bytes
_MAX_CHUNK_VALUES = 2**28


def find_suffix(path: Path | ObjectFile) -> str:
    """Return the suffix of a file's name from ``SUFFIXES``.

    Raises:
        DataError: If the suffix is none of them.
    """
    name = path.name.lower()
    suffixes = [suffix for suffix in SUFFIXES if name.endswith(suffix)]
    if not suffixes:
        raise DataError(
            f"{path} has no suffix of a file of records",
            code="data.suffix",
            expected=f"one of: {', '.join(SUFFIXES)}",
            next="give the file the suffix of its format",
        )
    return max(suffixes, key=len)


def split_lines(path: Path | ObjectFile, size_bytes: int) -> list[ByteSpan | None]:
    """Return spans of whole lines of about ``size_bytes`` each, in order.

    A file without random access (such as zstd) has one span, None, for the whole file.
    """
    if isinstance(path, ObjectFile):
        return [None]
    total = path.stat().st_size
    if find_suffix(path) not in (".jsonl", ".ndjson") or total <= size_bytes:
        return [None]
    edges = [0]
    with path.open("rb") as file:
        for near in range(size_bytes, total, size_bytes):
            if near > edges[-1]:
                file.seek(near)
                while (part := file.readline(MAX_ROW_BYTES)) and not part.endswith(b"\n"):
                    pass
                edges.append(file.tell())
    edges = [edge for edge in edges if edge < total]
    return [*zip(edges, [*edges[1:], total], strict=True)]


def iter_rows(path: Path, span: ByteSpan | None = None) -> Iterator[tuple[int, Any]]:
    """Yield each row's number with its values, or with the error of an unreadable row.

    Args:
        path: The file.
        span: First and last + 1 byte from ``split_lines``, with rows numbered from 1; by default
            all.
    """
    suffix = find_suffix(path)
    if suffix == ".parquet":
        yield from _parquet_rows(path)
    elif suffix == ".json":
        yield from _json_rows(path)
    elif suffix in TABLE_SUFFIXES:
        yield from _csv_rows(path)
    else:
        read = _text_row if suffix == ".txt" else _json_row
        for number, offset, line in _iter_lines(path, span):
            if isinstance(line, DataError):
                yield number, line
                continue
            try:
                yield number, read(line.decode())
            except UnicodeDecodeError as error:
                yield number, make_encoding_error(path, offset + error.start, line)


def _json_row(line: str) -> Any:
    try:
        return json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return _row_error(f"the row is not JSON: {error}", "one JSON object a line")


def _text_row(line: str) -> Any:
    return {"text": line.rstrip("\r\n")}


def iter_lines(path: Path, span: ByteSpan | None = None) -> Iterator[tuple[int, bytes | DataError]]:
    """Yield the numbered non-blank lines; one beyond the size limit is yielded as an error.

    Raises:
        DataError: If the file is damaged, or its text UTF-16 or UTF-32.
    """
    for number, _, line in _iter_lines(path, span):
        yield number, line


def _iter_lines(path: Path, span: ByteSpan | None) -> Iterator[tuple[int, int, bytes | DataError]]:
    """Yield the number, the first byte and the content of each line that is not blank."""
    with path.open("rb") as raw:
        file = _decompress(raw, path)
        number, after = 0, 0
        if span is not None:
            after = raw.seek(span[0])
        while span is None or file.tell() < span[1]:
            if not (line := file.readline(MAX_ROW_BYTES + 1)):
                return
            number, offset, after = number + 1, after, after + len(line)
            if offset == 0:
                if find_wide_encoding(line[:4]):
                    raise make_encoding_error(path, 0, line)
                line = line.removeprefix(BOM)
                offset = after - len(line)
            if len(line) > MAX_ROW_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_ROW_BYTES)
                    after += len(line)
                yield number, offset, row_too_large_error()
            elif line.strip():
                yield number, offset, line


def _decompress(raw: IO[bytes], path: Path) -> IO[bytes]:
    name = path.name.lower()
    if name.endswith(".zst"):
        return io.BufferedReader(_ZstdReader(raw, path), 2**17)
    return io.BufferedReader(_GzipReader(raw, path), 2**17) if name.endswith(".gz") else raw


class _GzipReader(io.RawIOBase):
    """Decompresses gzip members in bounded memory and detects truncation."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = gzip.GzipFile(fileobj=file), path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._file.readinto(buffer)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            _damaged_error(self._path, f"it is not sound gzip: {error}", error)


class _ZstdReader(io.RawIOBase):
    """Decompresses zstd frames in bounded memory and detects truncation."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        import zstandard

        self._file, self._path = file, path
        self._error = zstandard.ZstdError
        self._engine = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
        self._frame: Any = None
        self._left = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._fill():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _fill(self) -> bool:
        data = self._left or self._file.read(_ZSTD_READ)
        self._left = b""
        if not data:
            if self._frame is not None:
                _damaged_error(self._path, "the zstd stream is cut off")
            return False
        try:
            if self._frame is None:
                self._frame = self._engine.decompressobj()
            self._ready = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._left, self._frame = self._frame.unused_data, None
        except self._error as error:
            _damaged_error(self._path, f"it is not sound zstd: {error}", error)
        return True


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Open a Parquet file for the body of the ``with`` statement.

    A repeated text is stored once, and also in memory: a few KiB may stand for terabytes. Texts are
    therefore read as dictionaries.

    Raises:
        DataError: If it is damaged, also if that is found within the body.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as raw:
            metadata = pyarrow.parquet.read_metadata(raw)
            _check_column_chunks(path, raw.seek(0, os.SEEK_END), metadata)
            columns = map(metadata.schema.column, range(len(metadata.schema)))
            texts = [
                column.path
                for column in columns
                if column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL"
            ]
            with pyarrow.parquet.ParquetFile(
                raw, metadata=metadata, read_dictionary=texts, pre_buffer=False, memory_map=False
            ) as file:
                yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        _damaged_error(path, f"it is not sound Parquet: {error}", error)


def _check_column_chunks(path: Path, size: int, metadata: Any) -> None:
    """Refuse column chunks of more values than memory could hold; repeated ones take no bytes."""
    most = max(_MAX_CHUNK_VALUES, _VALUES_PER_BYTE * size)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.num_values > most:
                what = f"{column.num_values} values of {column.path_in_schema} in one row group"
                limit = f"over {most}; a sound file needs smaller row groups"
                _damaged_error(path, f"it claims {what}, {limit}")


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow

    number = 0
    for batch in iter_parquet_batches(path):
        is_error = isinstance(batch, DataError)
        for start in range(0, 1 if is_error else len(batch), _BATCH_ROWS):
            try:
                rows = [batch] if is_error else batch.slice(start, _BATCH_ROWS).to_pylist()
            except (pyarrow.ArrowException, ValueError, OverflowError) as error:
                _damaged_error(path, f"a value after row {number} cannot be read: {error}", error)
            for row in rows:
                number += 1
                yield number, row


def iter_parquet_batches(path: Path) -> Iterator[Any]:
    """Yield the rows of a Parquet file as Arrow batches of bounded size, in order.

    In the place of a row larger than ``MAX_ROW_BYTES`` its error is yielded.

    Raises:
        DataError: If the file is damaged.
    """
    with open_parquet(path) as file:
        groups = range(file.metadata.num_row_groups)
        size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
        size = max(size // max(file.metadata.num_rows, 1), 1)
        # With each batch come all texts of its row group so far, so batches are large.
        batch_size = max(1, min(_READ_ROWS, 4 * _BATCH_BYTES // size))
        for group in groups:  # one by one: within lists, Arrow does not join their dictionaries
            for batch in file.iter_batches(batch_size, row_groups=[group], use_threads=False):
                yield from map(_decode_batch, _split_batch(batch))


def _split_batch(batch: Any) -> Iterator[Any]:
    """Return parts of a batch that are small once each text is counted where it is repeated."""
    if len(batch) <= 1 or sum(map(_count_bytes, batch.columns)) <= _BATCH_BYTES:
        yield batch
        return
    middle = len(batch) // 2
    for part in (batch.slice(0, middle), batch.slice(middle)):
        yield from _split_batch(part)


def _decode_batch(batch: Any) -> Any:
    """Return a small batch with values in the place of dictionaries, or the error of its row."""
    import pyarrow

    if sum(map(_count_bytes, batch.columns)) > MAX_ROW_BYTES:
        return row_too_large_error()
    # Values of dictionaries are slow one by one; a cast also casts what lists hold beside a slice.
    fields = [field.with_type(_decode_type(field.type)) for field in batch.schema]
    return batch.take(pyarrow.array(range(len(batch)))).cast(pyarrow.schema(fields))


def _decode_type(kind: Any) -> Any:
    """Return an Arrow type with values in the place of dictionaries."""
    import pyarrow
    from pyarrow import types

    def decode(field: Any) -> Any:
        return field.with_type(_decode_type(field.type))

    if types.is_dictionary(kind):
        return kind.value_type
    if types.is_struct(kind):
        return pyarrow.struct(list(map(decode, kind)))
    if types.is_map(kind):
        return pyarrow.map_(decode(kind.key_field), decode(kind.item_field))
    if types.is_large_list(kind):
        return pyarrow.large_list(decode(kind.value_field))
    if types.is_fixed_size_list(kind):
        return pyarrow.list_(decode(kind.value_field), kind.list_size)
    return pyarrow.list_(decode(kind.value_field)) if types.is_list(kind) else kind


def _count_bytes(array: Any) -> int:
    """Return the bytes of an Arrow array's values, each text counted where it is repeated."""
    import pyarrow.compute
    from pyarrow import types

    kind = array.type
    if types.is_dictionary(kind) and not types.is_primitive(kind.value_type):
        lengths = pyarrow.compute.binary_length(array.dictionary)
        return pyarrow.compute.sum(lengths.take(array.indices)).as_py() or 0
    if types.is_struct(kind):
        return sum(map(_count_bytes, array.flatten()))
    if types.is_map(kind):
        start, stop = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return sum(_count_bytes(part[start:stop]) for part in (array.keys, array.items))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _count_bytes(array.flatten())
    return int(array.nbytes)


def _json_rows(path: Path | ObjectFile) -> Iterator[tuple[int, Any]]:
    size = path.size_bytes if isinstance(path, ObjectFile) else path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise DataError(
            f"{path} is larger than {MAX_JSON_BYTES // 2**20} MiB and JSON cannot be streamed",
            code="data.too-large",
            expected="JSONL: one object a line",
            next=f"jq -c '.[]' {path.name} > {path.name.removesuffix('.json')}.jsonl",
        )
    with path.open("rb") as file:
        text = decode_file(file.read(), path)
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        _damaged_error(path, f"it is not JSON: {error}", error)
    yield from enumerate(data if isinstance(data, list) else [data], 1)


def open_table(lines: Iterable[str]) -> csv.DictReader[str]:
    """Return a reader of the rows of a table by the names in its header.

    Cells are separated by what separates the header's: commas, semicolons or tabs, of which those
    between quotes do not count. Cells as in RFC 4180; else the reader raises ``csv.Error``.

    Raises:
        csv.Error: If the header is malformed, or two columns have one name, as the cells of the
            first would be lost. Columns without a name, which spreadsheets add, may be several.
    """
    if csv.field_size_limit() < MAX_ROW_BYTES:
        csv.field_size_limit(MAX_ROW_BYTES)
    lines = iter(lines)
    first = next(lines, "")
    delimiter = max(",;\t", key=_QUOTED.sub("", first).count)
    reader = csv.DictReader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    for name, count in Counter(reader.fieldnames or ()).items():
        if name and count > 1:
            raise csv.Error(f"two columns are named {name!r}")
    return reader


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        for row in open_table(_csv_lines(path)):
            number += 1
            if None in row:
                yield number, _row_error("the row has more cells than the header", "as many")
            elif None in row.values():
                yield number, _row_error("the row has fewer cells than the header", "as many")
            else:
                yield number, row
    except csv.Error as error:
        _damaged_error(path, f"it is not CSV after row {number}: {error}", error)


def _csv_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        number, after = 0, 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number, offset, after = number + 1, after, after + len(line)
            if len(line) > MAX_ROW_BYTES:
                _damaged_error(path, f"line {number} is longer than {MAX_ROW_BYTES // 2**20} MiB")
            if number == 1:
                yield decode_file(line, path)
                continue
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise make_encoding_error(path, offset + error.start, line) from error


def _row_error(message: str, expected: str) -> DataError:
    return DataError(
        message,
        code="data.row",
        expected=expected,
        next="repair or remove the row",
    )


def row_too_large_error() -> DataError:
    """Return the error for a row larger than ``MAX_ROW_BYTES``."""
    return DataError(
        f"the row is larger than {MAX_ROW_BYTES // 2**20} MiB",
        code="data.row-too-large",
        expected="rows of text that a model can read",
        next="cut the row up, or remove it",
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _damaged_error(
    path: Path | ObjectFile, message: str, cause: Exception | None = None
) -> NoReturn:
    raise DataError(
        f"{path} is damaged: {message}",
        code="data.damaged",
        where=str(path),
        expected="a whole file",
        next="fetch or write the file again",
    ) from cause
