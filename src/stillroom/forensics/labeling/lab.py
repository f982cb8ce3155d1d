"""The lab's home folder: watermark key, certificates, and hash-chained ledger.

One lab per user, in STILLROOM_LAB or the user's data folder, so that a file stripped of its
credentials can be identified by its watermark, whichever run made it.

Each ledger row carries the digest of the previous row and a keyed digest of itself; the head file
stores the number of rows, so that truncation is detected as well. Rows are appended under a lock
and never rewritten. Anyone with the lab's key could write another history, and anyone who may write
to the folder can remove both files or put back an earlier copy of both: the ledger protects against
accidents and against all other changes without the key.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from stillroom.errors import IntegrityError
from stillroom.forensics.c2pa.credentials import TrustList
from stillroom.forensics.c2pa.signature import init_ca
from stillroom.forensics.c2pa.signer import CA_FILE, CHAIN_FILE, Signer
from stillroom.jobs import atomic_write
from stillroom.objects.disk import write_secret
from stillroom.provenance.digests import load_json

__all__ = ["Lab", "Ledger", "has_lab", "lab_folder", "open_lab"]

_GENESIS_DIGEST = "0" * 64


class _End(NamedTuple):
    """Number of whole rows, digest of the last, their size in bytes; whether a head confirms it."""

    number: int
    digest: str
    size: int
    is_confirmed: bool


class _Index(NamedTuple):
    """Lines of a ledger: the first of each watermark, and all of each run and file name."""

    by_mark: dict[str, bytes]
    by_origin: dict[tuple[Any, Any], list[bytes]]


@lru_cache(maxsize=1)  # to check each of many files would otherwise verify the whole ledger
def _index_rows(folder: Path, key: bytes, head: bytes | None, state: object) -> _Index:
    index = _Index({}, {})
    for row in Ledger(folder, key).rows():
        line = _line(row)
        index.by_mark.setdefault(str(row.get("watermark")), line)
        index.by_origin.setdefault((row.get("run"), row.get("file")), []).append(line)
    return index


class Ledger:
    """Append-only rows in ``ledger.jsonl`` of a lab's folder."""

    def __init__(self, folder: Path, key: bytes) -> None:
        """Open the ledger of a lab; nothing is read yet."""
        self.path, self.head = folder / "ledger.jsonl", folder / "ledger.head"
        self._key = key

    def append(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Append one row and return it, with its number, time and digests.

        Raises:
            IntegrityError: If the last row or the head was modified.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of the file itself; filelock needs another beside it
            # Its end is read under the lock: another process may have written since it was opened.
            size = file.seek(0, os.SEEK_END)
            count, previous, end, is_confirmed = self._find_end(self._read_head(), size)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                raise self._broken("its last row was modified")
            file.truncate(end)  # of a torn row; never of one that a head confirms
            # A row without a head is a ledger that lost it, and two rows behind a head are one that
            # was changed: the head is written first.
            if not is_confirmed:
                self._write_head(count, previous, end)
            row = {
                "number": count,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                **fields,
                "previous": previous,
            }
            row["digest"] = self._digest(row)
            line = _line(row)
            try:
                if file.write(line) < len(line):  # only a full disk cuts a write
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
            self._write_head(count + 1, row["digest"], end + len(line))
        return row

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield every row after verifying it.

        Raises:
            IntegrityError: At the first row that was modified, moved or removed.
        """
        previous, count = _GENESIS_DIGEST, 0
        data, head = self._read()
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        for number, line in enumerate(lines):
            try:
                row = load_json(line)
                expected = self._digest(row)
                holds = (
                    row["number"] == number
                    and row["previous"] == previous
                    and hmac.compare_digest(str(row["digest"]), expected)
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                holds = False
            if not holds:
                raise self._broken(f"row {number} was modified, moved or removed")
            previous, count = row["digest"], number + 1
            yield row
        if self._find_end(head, len(data), data)[:2] != (count, previous):
            raise self._broken(f"it ends at row {count}, which its head does not confirm")

    def verify(self) -> int:
        """Verify the whole chain and return the number of rows.

        Raises:
            IntegrityError: If a row or the head was modified.
        """
        return sum(1 for _ in self.rows())

    def find_all(self, marks: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return the first row of each watermark, given as rows store them."""
        lines = self._index().by_mark if marks else {}
        return {mark: load_json(lines[mark]) for mark in sorted(marks) if mark in lines}

    def find_related(self, rows: Collection[Mapping[str, Any]]) -> dict[int, list[dict[str, Any]]]:
        """Return, by row number, the other rows with the same run and file name.

        A forgery and its real twin are such rows.
        """
        related = {}
        for row in rows:
            same = self._index().by_origin.get((row.get("run"), row.get("file")), [])
            others = map(load_json, same)
            related[row["number"]] = [one for one in others if one["number"] != row["number"]]
        return related

    def _index(self) -> _Index:
        """Return the verified rows by watermark and origin; read again after any change."""
        stat = self.path.stat() if self.path.is_file() else None
        # The time of a change cannot be set back, unlike that of a modification.
        state = stat and (
            stat.st_dev,
            stat.st_ino,
            stat.st_size,
            stat.st_mtime_ns,
            stat.st_ctime_ns,
        )
        return _index_rows(self.path.parent, self._key, self._read_head(), state)

    def _read(self) -> tuple[bytes, bytes | None]:
        """Return rows and head of one moment, at which no writer may take its row back."""
        head = self._read_head()
        if not self.path.is_file():
            return b"", head
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return file.read(), self._read_head()

    def _read_head(self) -> bytes | None:
        return self.head.read_bytes() if self.head.is_file() else None

    def _find_end(self, content: bytes | None, size: int, data: bytes | None = None) -> _End:
        """Return the end that a head states, or that of a writer that was killed.

        Args:
            content: The head's; None if there is none.
            size: Size of the rows in bytes.
            data: The rows; by default read if need be.
        """
        if content is None:
            if size:
                raise self._broken("its head is missing")
            return _End(0, _GENESIS_DIGEST, 0, is_confirmed=False)
        try:
            head = load_json(content)
            expected = self._sign_head(head["count"], head["digest"], head["size"])
            holds = hmac.compare_digest(str(head["mark"]), str(expected["mark"]))
        except (ValueError, KeyError, TypeError):
            holds = False
            head = {}
        if not holds:
            raise self._broken("its head was modified")
        if head["size"] != size:
            # A kill between row and head leaves a row that the head does not count; one within a
            # row leaves a torn row, without line end. Neither has a picture, which comes last.
            return self._recover(head, self.path.read_bytes()[:size] if data is None else data)
        return _End(int(head["count"]), str(head["digest"]), size, is_confirmed=True)

    def _recover(self, head: Mapping[str, Any], data: bytes) -> _End:
        end = data.rfind(b"\n") + 1
        tail = data[head["size"] : end]
        if len(data) > head["size"] == end:
            return _End(int(head["count"]), str(head["digest"]), end, is_confirmed=True)
        try:
            row = load_json(tail)
            holds = (
                row["number"] == head["count"]
                and row["previous"] == head["digest"]
                and hmac.compare_digest(str(row["digest"]), self._digest(row))
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            holds = False
        if not holds:
            raise self._broken("it is shorter or longer than its head states")
        return _End(int(row["number"]) + 1, str(row["digest"]), end, is_confirmed=False)

    def _write_head(self, count: int, digest: str, size: int) -> None:
        with atomic_write(self.head) as head:
            json.dump(self._sign_head(count, digest, size), head)

    def _sign_head(self, count: int, digest: str, size: int) -> dict[str, Any]:
        message = f"head {count} {digest} {size}".encode()
        mark = hmac.new(self._key, message, hashlib.sha256).hexdigest()
        return {"count": count, "digest": digest, "size": size, "mark": mark}

    def _digest(self, row: Mapping[str, Any]) -> str:
        body = {key: value for key, value in row.items() if key != "digest"}
        return hmac.new(self._key, _line(body), hashlib.sha256).hexdigest()

    def _broken(self, problem: str) -> IntegrityError:
        return IntegrityError(
            f"the ledger is broken: {problem}",
            code="forensics.ledger",
            where=str(self.path),
            expected="all rows that the lab wrote",
            next="restore the ledger from a copy; until then the lab creates nothing",
        )


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n"


_KEY_FILE = "lab.key"
_KEY_BYTES = 32


def lab_folder() -> Path:
    """Return the lab's folder: STILLROOM_LAB, else in the user's data folder."""
    configured = os.environ.get("STILLROOM_LAB")
    if configured:
        return Path(configured)
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "stillroom" / "lab"


@dataclass(frozen=True)
class Lab:
    """An opened lab."""

    folder: Path
    key: bytes
    signer: Signer
    trust: TrustList
    ledger: Ledger


def open_lab(folder: Path | None = None) -> Lab:
    """Open the lab; its key and certificates are created on first use.

    Raises:
        IntegrityError: If the key is missing beside an existing ledger, or is damaged.
    """
    home = folder or lab_folder()
    if not (home / _KEY_FILE).is_file():
        if (home / "ledger.jsonl").exists():
            raise _broken(home, "its key is missing, though it has a ledger")
        home.mkdir(parents=True, exist_ok=True)
        write_secret(home / _KEY_FILE, secrets.token_bytes(_KEY_BYTES))
    key = (home / _KEY_FILE).read_bytes()
    if len(key) != _KEY_BYTES:
        raise _broken(home, f"its key has {len(key)} bytes")
    if not (home / CHAIN_FILE).is_file():
        init_ca(home)
    trust = TrustList.read("lab", home / CA_FILE)
    return Lab(home, key, Signer.open(home), trust, Ledger(home, key))


def has_lab() -> bool:
    """Return whether this user has a lab."""
    return (lab_folder() / _KEY_FILE).is_file()


def _broken(home: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"the lab is broken: {why}",
        code="forensics.lab",
        where=str(home / _KEY_FILE),
        expected="the key that the lab was created with",
        next="restore it from a copy, or set STILLROOM_LAB to a new folder",
    )
