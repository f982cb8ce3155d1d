"""The lab's home: its key, its certificates and its ledger, made on first use.

One lab a user, in STILLROOM_LAB or the user's data folder, so that a file that was stripped of its
credentials is found again by its watermark whichever run made it.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import IntegrityError
from stillroom.forensics.certificates import CA_FILE, CHAIN_FILE, init_ca
from stillroom.forensics.credentials import Signer, TrustList
from stillroom.forensics.ledger import Ledger

__all__ = ["Lab", "has_lab", "lab_folder", "open_lab"]

_KEY_FILE = "lab.key"
_KEY_BYTES = 32


def lab_folder() -> Path:
    """Return where the lab lives: STILLROOM_LAB, else the user's data folder."""
    own = os.environ.get("STILLROOM_LAB")
    if own:
        return Path(own)
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
    """Open the lab; on first use its key and certificates are made.

    Args:
        folder: The lab's home; default ``lab_folder()``.

    Raises:
        IntegrityError: If the key is gone though the ledger is there, or is damaged.
    """
    home = folder or lab_folder()
    if not (home / _KEY_FILE).is_file():
        _make_key(home)
    key = (home / _KEY_FILE).read_bytes()
    if len(key) != _KEY_BYTES:
        raise _broken(home, f"its key has {len(key)} bytes")
    if not (home / CHAIN_FILE).is_file():
        init_ca(home)
    trust = TrustList.read("lab", home / CA_FILE)
    return Lab(home, key, Signer.open(home), trust, Ledger(home, key))


def has_lab() -> bool:
    """Return whether this user has a lab already."""
    return (lab_folder() / _KEY_FILE).is_file()


def _make_key(home: Path) -> None:
    if (home / "ledger.jsonl").exists():
        raise _broken(home, "its key is gone, though it has a ledger")
    home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home / _KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(_KEY_BYTES))


def _broken(home: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"the lab is broken: {why}",
        code="forensics.lab",
        where=str(home / _KEY_FILE),
        expected="the key that the lab was made with",
        next="restore it from a copy, or set STILLROOM_LAB to a new folder",
    )
