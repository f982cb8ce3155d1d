"""The lab's ledger: a row for every file that it ever made, chained so that no row can be changed.

Each row carries the digest of the one before and a keyed digest of itself; the head file keeps how
many rows there are, so that cutting off the end shows as well. Rows are appended under a lock and
never rewritten. Who has the lab's key could write another history: the ledger holds against
accidents and against everyone else.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillroom.errors import IntegrityError
from stillroom.jobs import atomic_write

__all__ = ["Ledger"]

_FIRST = "0" * 64


class Ledger:
    """Append-only rows in ``ledger.jsonl`` of a lab's folder."""

    def __init__(self, folder: Path, key: bytes) -> None:
        """Stand over the ledger of a lab; nothing is read yet."""
        self.path, self.head = folder / "ledger.jsonl", folder / "ledger.head"
        self._key = key

    def append(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Write one row and return it, with its number, time and digests.

        Raises:
            IntegrityError: If the last row or the head is not what was written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            count, previous = self._read_head(file.tell())
            row = {
                "number": count,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                **fields,
                "previous": previous,
            }
            row["digest"] = self._digest(row)
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
            with atomic_write(self.head) as head:
                json.dump(self._sign_head(count + 1, row["digest"], file.tell()), head)
        return row

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield every row, proved one by one.

        Raises:
            IntegrityError: At the first row that was changed, moved or taken out.
        """
        previous, count = _FIRST, 0
        lines = self.path.read_bytes().splitlines() if self.path.is_file() else []
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
                wanted = self._digest(row)
                holds = (
                    row["number"] == number
                    and row["previous"] == previous
                    and hmac.compare_digest(str(row["digest"]), wanted)
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                holds = False
            if not holds:
                raise self._broken(f"row {number} was changed, moved or taken out")
            previous, count = row["digest"], number + 1
            yield row
        size = self.path.stat().st_size if self.path.is_file() else 0
        if self._read_head(size) != (count, previous):
            raise self._broken(f"it ends at row {count}, and the head says otherwise")

    def verify(self) -> int:
        """Prove the whole chain and return how many rows it has.

        Raises:
            IntegrityError: If a row or the head is not what was written.
        """
        return sum(1 for _ in self.rows())

    def find_all(self, marks: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return the first row of each of some watermarks, as rows write them."""
        found: dict[str, dict[str, Any]] = {}
        for row in self.rows() if marks else ():
            mark = str(row.get("watermark"))
            if mark in marks:
                found.setdefault(mark, row)
        return found

    def find_beside(self, rows: Collection[Mapping[str, Any]]) -> dict[int, list[dict[str, Any]]]:
        """Return, by the number of each row, those of the same file's name in the same run.

        A forgery and its real twin are such rows.
        """
        places = {row["number"]: (row.get("run"), row.get("file")) for row in rows}
        beside: dict[int, list[dict[str, Any]]] = {number: [] for number in places}
        for other in self.rows() if places else ():
            for number, place in places.items():
                is_other = other["number"] != number
                if is_other and (other.get("run"), other.get("file")) == place:
                    beside[number].append(other)
        return beside

    def _read_head(self, size: int) -> tuple[int, str]:
        if not self.head.is_file():
            if size:
                raise self._broken("its head is gone")
            return 0, _FIRST
        try:
            head = json.loads(self.head.read_text(encoding="utf-8"))
            wanted = self._sign_head(head["count"], head["digest"], head["size"])
            holds = hmac.compare_digest(str(head["mark"]), str(wanted["mark"]))
        except (ValueError, KeyError, TypeError):
            holds = False
            head = {}
        if not holds:
            raise self._broken("its head was changed")
        if head["size"] != size:
            # A kill between a row and its head leaves one whole row that the head does not count.
            return self._recover(head, size)
        return int(head["count"]), str(head["digest"])

    def _recover(self, head: Mapping[str, Any], size: int) -> tuple[int, str]:
        rest = self.path.read_bytes()[head["size"] : size]
        try:
            row = json.loads(rest)
            holds = (
                row["number"] == head["count"]
                and row["previous"] == head["digest"]
                and hmac.compare_digest(str(row["digest"]), self._digest(row))
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            holds = False
        if not holds:
            raise self._broken("it is shorter or longer than its head says")
        return int(row["number"]) + 1, str(row["digest"])

    def _sign_head(self, count: int, digest: str, size: int) -> dict[str, Any]:
        said = f"head {count} {digest} {size}".encode()
        mark = hmac.new(self._key, said, hashlib.sha256).hexdigest()
        return {"count": count, "digest": digest, "size": size, "mark": mark}

    def _digest(self, row: Mapping[str, Any]) -> str:
        body = {key: value for key, value in row.items() if key != "digest"}
        return hmac.new(self._key, _line(body), hashlib.sha256).hexdigest()

    def _broken(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"the ledger is broken: {what}",
            code="forensics.ledger",
            where=str(self.path),
            expected="the rows that the lab wrote, all of them",
            next="restore the ledger from a copy; until then the lab makes nothing",
        )


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n"
