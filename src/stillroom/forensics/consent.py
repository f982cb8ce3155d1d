"""Consent: who agreed that pictures or recordings of them are used, why, for what, until when.

A record names the very files it covers, by digest, so that it serves for no other person. Without a
record that covers a file the lab does not open it. Whether what a record says is true only
people can know; it is kept in the ledger with every file made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.forensics.listing import list_files
from stillroom.forensics.pictures import PICTURES
from stillroom.forensics.waves import SOUNDS
from stillroom.jobs import atomic_write
from stillroom.provenance import digest_file, digest_json

if TYPE_CHECKING:
    from stillroom.forensics.recipe import BaseSettings

__all__ = ["ANY_SCOPE", "Consent", "answer_for", "list_agreed", "write_consent"]

ANY_SCOPE = "any"
_KEYS = ("who", "basis", "scope", "expires", "files")


@dataclass(frozen=True, slots=True)
class Consent:
    """One record. ``scope`` are names of methods, or ``any``; ``files`` digests of the files."""

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
            digests: Of the files to be used.
            today: Default the day it is, in UTC.

        Raises:
            DataError: If the record has expired, is for something else, or misses a file.
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
                f"the consent of {self.who} does not cover {len(missing)} of the files "
                f"(the first has the digest {missing[0][:12]})",
                "files whose digests stand in the record",
            )


def answer_for(
    settings: BaseSettings,
    paths: Sequence[Path],
    uses: Sequence[str],
    *,
    refuse: Callable[[Sequence[Path], str], None],
    say: Callable[[str], None],
) -> tuple[str, str]:
    """Return whose some files are, and the consent's id; the one gate of faces and voices.

    Files of people need a consent that covers each of them and every use. A generator that is named
    instead is taken at its word where ``refuse`` finds no sign against it; the claim is said aloud,
    and what is returned is recorded with every file that is made.

    Args:
        settings: What was said of the files.
        paths: The files.
        uses: Names of the methods they are used for.
        refuse: Raises where files and the name of their generator contradict each other.
        say: Told of the claim.

    Returns:
        ``person`` or ``synthetic: GENERATOR``, and the record's id, empty without one.

    Raises:
        DataError: If the consent does not cover a use or file, or a file contradicts the claim.
    """
    if settings.consent is not None:
        consent, digests = Consent.read(Path(settings.consent)), [digest_file(one) for one in paths]
        for use in uses:
            consent.check(use, digests)
        return "person", consent.id
    if settings.basis:
        return "person", ""
    refuse(paths, settings.synthetic_source)
    say(
        f"{len(paths)} files are said to show or let hear nobody, and to be made by "
        f"{settings.synthetic_source}: no consent was asked for, which is recorded with every file"
    )
    return f"synthetic: {settings.synthetic_source}", ""


def list_agreed(path: Path) -> list[Path]:
    """Return the pictures and recordings below a folder, sorted, or the one file that is named.

    Raises:
        DataError: If there is none.
    """
    endings = PICTURES | SOUNDS
    found = list_files(path, endings)
    if not found:
        raise DataError(
            f"{path} holds no picture and no recording",
            code="forensics.no-faces",
            where=str(path),
            expected=f"files ending in {' '.join(sorted(endings))}",
            next="check the path",
        )
    return found


def write_consent(
    path: Path,
    files: Sequence[Path],
    *,
    who: str,
    basis: str,
    scope: Sequence[str],
    expires: date,
) -> Consent:
    """Write a record for these pictures or recordings and read it back.

    Raises:
        DataError: If something is not said.
    """
    body: dict[str, Any] = {
        "who": who.strip(),
        "basis": basis.strip(),
        "scope": list(scope),
        "expires": expires.isoformat(),
        "files": sorted(digest_file(file) for file in files),
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
