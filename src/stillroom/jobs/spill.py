"""Disk-backed lists of rows and records."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self, TypeVar, overload

from stillroom.jobs.files import full_disk_as_error
from stillroom.records import Record, RecordWriter, encode_record

__all__ = ["DiskList", "DiskRecordList"]

T = TypeVar("T")
_JSON = json.JSONEncoder(ensure_ascii=False)


class DiskList(Sequence[T]):
    """A growing sequence whose rows are stored in a file.

    The file belongs to the list and is overwritten; the creator of the folder removes it.
    """

    def __init__(
        self, path: Path, to_json: Callable[[T], Any], from_json: Callable[[Any], T]
    ) -> None:
        """Create an empty list.

        Args:
            path: File of the rows.
            to_json: Converts a row to plain JSON values.
            from_json: Builds an equal row from them.
        """
        self._path = path
        self._to_json, self._from_json = to_json, from_json
        self._writer: IO[bytes] = path.open("wb")
        self._reader: IO[bytes] = path.open("rb")
        self._places = array("Q")
        self._end = 0

    def __enter__(self) -> Self:
        """Return the list, closed at the end of the ``with`` body."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Close."""
        self.close()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        """Return copies of one row, or of those of a slice."""
        if isinstance(index, slice):
            return [self[offset] for offset in range(*index.indices(len(self)))]
        self._flush()
        return self._read(index)

    def __iter__(self) -> Iterator[T]:
        """Yield all rows, in order of insertion."""
        self._flush()
        for offset in range(len(self)):
            yield self._read(offset)

    def append(self, row: T) -> None:
        """Append one row.

        Raises:
            ResourceError: If the disk is full.
        """
        line = self._encode(row)
        with full_disk_as_error(self._path):
            self._writer.write(line)
        self._places.append(self._end)
        self._end += len(line)

    def close(self) -> None:
        """Close the file; the rows can no longer be read."""
        self._writer.close()
        self._reader.close()

    def _encode(self, row: T) -> bytes:
        text = _JSON.encode(self._to_json(row))
        return text.encode("utf-8", "surrogatepass") + b"\n"

    def _read(self, index: int) -> T:
        self._reader.seek(self._places[index])
        return self._from_json(json.loads(self._reader.readline().decode("utf-8", "surrogatepass")))

    def _flush(self) -> None:
        with full_disk_as_error(self._path):
            self._writer.flush()


class DiskRecordList(DiskList[Record]):
    """Records in a file, encoded as in any file of records."""

    def __init__(self, path: Path) -> None:
        """Create an empty list at ``path``."""
        super().__init__(path, Record.to_json, Record.from_json)

    def copy_to(self, writer: RecordWriter) -> None:
        """Write all records, without decoding them.

        Raises:
            ResourceError: If the disk is full.
        """
        self._flush()
        with self._path.open("rb") as lines:
            writer.copy_lines(lines, len(self))

    def _encode(self, row: Record) -> bytes:
        return encode_record(row, len(self) + 1, self._path)
