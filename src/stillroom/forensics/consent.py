"""Consent: who agreed that pictures of them are used, on what basis, for what, and until when.

A record names the very files it covers, by digest, so that it serves for no other person. Without a
record that covers a picture the lab does not open it. Whether what a record says is true only
people can know; it is kept in the ledger with every file made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.jobs import atomic_write
from stillroom.provenance import digest_file, digest_json

__all__ = ["ANY_SCOPE", "Consent", "write_consent"]

ANY_SCOPE = "any"
_KEYS = ("who", "basis", "scope", "expires", "files")


@dataclass(frozen=True, slots=True)
class Consent:
    """One record. ``scope`` are names of forgeries, or ``any``; ``files`` digests of pictures."""

    who: str
    basis: str
    scope: tuple[str, ...]
    expires: date
    files: frozenset[str]
    id: str

    @classmethod
    def read(cls, path: Path) -> Consent:
        """Read a record.

        Raises:
            DataError: If it is missing, or does not say who, basis, scope, expires and files.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            missing = [key for key in _KEYS if not data.get(key)]
            expires = date.fromisoformat(str(data["expires"])) if not missing else date.min
        except (OSError, ValueError, AttributeError) as error:
            raise _unreadable(path, str(error)) from error
        if missing:
            raise _unreadable(path, f"it does not say: {', '.join(missing)}")
        if not all(isinstance(data[key], list) for key in ("scope", "files")):
            raise _unreadable(path, "scope and files are lists")
        body = {key: data[key] for key in _KEYS}
        return cls(
            str(data["who"]),
            str(data["basis"]),
            tuple(str(name) for name in data["scope"]),
            expires,
            frozenset(str(digest) for digest in data["files"]),
            digest_json(body)[:16],
        )

    def check(self, method: str, digests: Iterable[str], *, today: date | None = None) -> None:
        """Refuse a use that the record does not cover.

        Args:
            method: The forgery or edit to be made.
            digests: Of the pictures to be used.
            today: Default the day it is, in UTC.

        Raises:
            DataError: If the record has expired, is for something else, or misses a picture.
        """
        day = today or datetime.now(UTC).date()
        if self.expires < day:
            raise _refused(
                f"the consent of {self.who} expired on {self.expires}", "a record in force"
            )
        if ANY_SCOPE not in self.scope and method not in self.scope:
            raise _refused(
                f"the consent of {self.who} does not cover '{method}'",
                f"one of: {', '.join(self.scope)}",
            )
        missing = [digest for digest in digests if digest not in self.files]
        if missing:
            raise _refused(
                f"the consent of {self.who} does not cover {len(missing)} of the pictures "
                f"(the first has the digest {missing[0][:12]})",
                "pictures whose digests stand in the record",
            )


def write_consent(
    path: Path,
    pictures: Sequence[Path],
    *,
    who: str,
    basis: str,
    scope: Sequence[str],
    expires: date,
) -> Consent:
    """Write a record for these pictures and read it back.

    Raises:
        DataError: If something is not said.
    """
    body: dict[str, Any] = {
        "who": who.strip(),
        "basis": basis.strip(),
        "scope": list(scope),
        "expires": expires.isoformat(),
        "files": sorted(digest_file(picture) for picture in pictures),
    }
    if path.exists():
        raise DataError(
            f"{path} exists already",
            code="data.exists",
            expected="a new file",
            next="choose another --out",
        )
    with atomic_write(path) as file:
        json.dump(body, file, ensure_ascii=False, indent=1)
    try:
        return Consent.read(path)
    except DataError:
        path.unlink()
        raise


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is no consent record: {why}",
        code="forensics.consent-record",
        where=str(path),
        expected="JSON with who, basis, scope, expires (YYYY-MM-DD) and files (digests)",
        next="stillroom forensics consent --help",
    )


def _refused(what: str, expected: str) -> DataError:
    return DataError(
        what,
        code="forensics.consent",
        expected=expected,
        next="ask the person, and write a new record: stillroom forensics consent --help",
    )
