"""Records that lie in a file while a job collects them, so that memory does not grow with them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, overload

from stillroom.jobs.files import full_disk_as_error
from stillroom.records import Record

__all__ = ["SpilledRecords"]


class SpilledRecords(Sequence[Record]):
    """A list that can grow, be counted, read by index and gone through; its rows lie in a file.

    The file belongs to the list: what lay there before is overwritten, and whoever made the folder
    removes it.
    """

    def __init__(self, path: Path) -> None:
        """Begin with nothing at ``path``."""
        self._path = path
        self._writer: IO[bytes] = path.open("wb")
        self._reader: IO[bytes] = path.open("rb")
        self._places = array("Q")
        self._end = 0

    def __enter__(self) -> SpilledRecords:
        """Return the list, to be closed at the end of the body."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Close."""
        self.close()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """Return one, or those of a slice, copies of their own."""
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        self._flush()
        self._reader.seek(self._places[index])
        return _parse(self._reader.readline())

    def __iter__(self) -> Iterator[Record]:
        """Yield all, in order of their coming."""
        self._flush()
        for at in range(len(self)):
            self._reader.seek(self._places[at])
            yield _parse(self._reader.readline())

    def append(self, record: Record) -> None:
        """Add one.

        Raises:
            ResourceError: If the disk is full.
        """
        row = {
            "messages": [message.to_json() for message in record.messages],
            "fields": dict(record.fields),
            "origin": record.origin.to_json(),
        }
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        with full_disk_as_error(self._path):
            self._writer.write(line)
        self._places.append(self._end)
        self._end += len(line)

    def close(self) -> None:
        """Close the file; the records can no longer be read."""
        self._writer.close()
        self._reader.close()

    def _flush(self) -> None:
        with full_disk_as_error(self._path):
            self._writer.flush()


def _parse(line: bytes) -> Record:
    return Record.from_json(json.loads(line.decode("utf-8", "surrogatepass")))
