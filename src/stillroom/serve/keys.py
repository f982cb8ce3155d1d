"""API keys: secrets that clients bear, and as whom each of them asks.

In a key file a line is a key, and after it who asks with it and what for::

    kq3v...Zw  tenant=acme principal=group:sales principal=user:ann   # the sales desk
    sha256:9f86...0a08  tenant=acme scope=jobs:read scope=models

A line may hold the key itself or, so that who reads the file has no key, its digest; ``write_key``
makes such a line.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from stillroom.errors import DataError
from stillroom.rag.access import Access

__all__ = ["SCOPES", "ApiKey", "read_keys", "write_key"]

_VARIABLE = "STILLROOM_API_KEY"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_SHORTEST_KEY = 16
SCOPES = frozenset({"models", "jobs:read", "jobs:write", "forensics", "metrics"})
"""What a key may be for."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, who asks with it (None where the server's own default does), and what for."""

    secret: str = field(repr=False)
    access: Access | None = None
    scopes: frozenset[str] = SCOPES

    @property
    def digest(self) -> bytes:
        """The key's sha256: of the key, or as the file has it."""
        if _DIGEST.match(self.secret):
            return bytes.fromhex(self.secret.removeprefix("sha256:"))
        return hashlib.sha256(self.secret.encode()).digest()


def write_key(path: Path, words: str = "") -> str:
    """Draw a key, append its digest to a file of keys, and return the key; it is kept nowhere.

    Args:
        path: The file; made, for its owner alone, where there is none.
        words: Who asks with it and what for, as a line has it.

    Raises:
        DataError: If the words are not understood, or others may read the file.
    """
    secret = secrets.token_urlsafe(32)
    line = f"sha256:{hashlib.sha256(secret.encode()).hexdigest()} {' '.join(words.split())}"
    _parse(line.partition("#")[0].split(), path)
    before = _read_private(path) if path.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{before}{line.rstrip()}\n")
    return secret


def read_keys(path: Path | None = None) -> tuple[ApiKey, ...]:
    """Return the keys of a file (one a line, ``#`` begins a comment) and of the environment.

    Raises:
        DataError: If the file cannot be read or others may read it, a line says something else than
            a key and who asks, a key is short, or one stands for two askers.
    """
    lines = os.environ.get(_VARIABLE, "").split(",")
    found = [ApiKey(line.strip()) for line in lines if line.strip()]
    if path is not None:
        text = _read_private(path).splitlines()
        told = (line.partition("#")[0].split() for line in text)
        found += [_parse(words, path) for words in told if words]
    if any(len(key.secret) < _SHORTEST_KEY for key in found):
        raise DataError(
            "an API key is too short to be secret",
            code="serve.weak-key",
            expected=f"at least {_SHORTEST_KEY} characters",
            next="python -c 'import secrets; print(secrets.token_urlsafe(24))'",
        )
    keys = tuple(dict.fromkeys(found))
    if len({key.secret for key in keys}) < len(keys):
        raise _bad_file(path, "one key stands for two askers", "each key once")
    return keys


def _read_private(path: Path) -> str:
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            code="serve.key-file",
            expected="a text file of keys, one a line",
            next="check the path and its permissions",
        ) from error
    if mode & 0o077:
        raise DataError(
            f"{path} can be read by others",
            code="serve.key-file",
            expected="a file that only its owner may read",
            next=f"chmod 600 {path}",
        )
    return text


def _parse(words: list[str], path: Path) -> ApiKey:
    """Return the key of a line; what it says of the asker is never passed over."""
    tenant, principals, scopes = "", [], set()
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if (
            not (equals and value)
            or name not in {"tenant", "principal", "scope"}
            or (name == "tenant" and tenant)
            or (name == "scope" and value not in SCOPES)
        ):
            raise _bad_file(path, f"{word!r:.40} after a key is not understood", _FORM)
        if name == "tenant":
            tenant = value
        elif name == "scope":
            scopes.add(value)
        else:
            principals.append(value)
    if principals and not tenant:
        raise _bad_file(path, "a key has principals and no tenant", _FORM)
    access = Access(tenant, principals) if tenant else None
    return ApiKey(words[0], access, frozenset(scopes) or SCOPES)


_FORM = (
    "KEY, or KEY tenant=NAME principal=LABEL scope=SCOPE ..., and # before remarks; "
    f"scopes are {', '.join(sorted(SCOPES))}"
)


def _bad_file(path: Path | None, what: str, expected: str) -> DataError:
    return DataError(
        what,
        code="serve.key-file",
        where=str(path or _VARIABLE),
        expected=expected,
        next="correct the line; keys are not shown here",
    )
