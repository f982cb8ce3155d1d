"""API key file with scopes, and request limits; ``serve.middleware.auth`` checks requests.

Each line of a key file holds a key, followed by the identity and the scopes of its client::

    kq3v...Zw  tenant=acme principal=group:sales principal=user:ann   # the sales desk
    sha256:9f86...0a08  tenant=acme scope=jobs:read scope=models

A line may hold the SHA-256 digest of the key instead of the key, so that the file reveals no key;
``create_key`` writes such lines.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from stillroom.errors import DataError
from stillroom.objects.disk import append_line, full_disk_as_error, read_secret, sync_path
from stillroom.rag.index.view import AccessContext

__all__ = [
    "LOOPBACK_NAMES",
    "SCOPES",
    "ApiKey",
    "KeyScope",
    "RequestLimits",
    "create_key",
    "parse_host_name",
    "read_keys",
]

_ENVIRONMENT_VARIABLE = "STILLROOM_API_KEY"
_DIGEST_PATTERN = re.compile(r"sha256:[0-9a-f]{64}\Z")
_MIN_KEY_LENGTH = 16
KeyScope = Literal[
    "models", "judgments", "judgments:manage", "jobs:read", "jobs:write", "forensics", "metrics"
]
SCOPES: frozenset[str] = frozenset(get_args(KeyScope))
"""Permissions that a key can grant."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """API key, the access of its client (None: the server's default), and its scopes."""

    secret: str = field(repr=False)
    access: AccessContext | None = None
    scopes: frozenset[str] = SCOPES

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key, computed or as given in the file."""
        if _DIGEST_PATTERN.match(self.secret):
            return bytes.fromhex(self.secret.removeprefix("sha256:"))
        return hashlib.sha256(self.secret.encode()).digest()


def create_key(path: Path, words: str = "") -> str:
    """Generate a key, append its digest to a key file, and return the key, which is not stored.

    A missing file is created with owner-only permissions. ``words`` are tenant, principals and
    scopes, in the format of a line.

    Raises:
        DataError: If the words cannot be parsed, or other users may read the file.
        ResourceError: If the disk is full; the other keys are as before.
    """
    secret = secrets.token_urlsafe(32)
    line = f"sha256:{hashlib.sha256(secret.encode()).hexdigest()} {' '.join(words.split())}"
    _parse_line(line.partition("#")[0].split(), path)
    if path.exists():
        _read_private_file(path)
    with full_disk_as_error(path), open(path, "ab", opener=_open_private) as file:
        with suppress(OSError):  # a disk without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file.fileno()).st_size
        try:
            append_line(path, line.rstrip())
            sync_path(path)
        except BaseException:
            file.truncate(size)  # else a part of the line would be taken for a key
            raise
    return secret


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def read_keys(path: Path | None = None) -> tuple[ApiKey, ...]:
    """Return the keys of a file (one a line, ``#`` starts a comment) and of the environment.

    Raises:
        DataError: If the file cannot be read or is readable by other users, a line cannot be
            parsed, a key is too short, or a key is given for two clients.
    """
    lines = os.environ.get(_ENVIRONMENT_VARIABLE, "").split(",")
    api_keys = [ApiKey(line.strip()) for line in lines if line.strip()]
    if path is not None:
        text = _read_private_file(path).splitlines()
        entries = (line.partition("#")[0].split() for line in text)
        api_keys += [_parse_line(words, path) for words in entries if words]
    if any(len(key.secret) < _MIN_KEY_LENGTH for key in api_keys):
        raise DataError(
            "an API key is too short to be secret",
            code="serve.weak-key",
            expected=f"at least {_MIN_KEY_LENGTH} characters",
            next="python -c 'import secrets; print(secrets.token_urlsafe(24))'",
        )
    keys = tuple(dict.fromkeys(api_keys))
    if len({key.digest for key in keys}) < len(keys):
        raise _key_file_error(path, "one key is given for two clients", "each key once")
    return keys


def _read_private_file(path: Path) -> str:
    try:
        mode, text = path.stat().st_mode, read_secret(path).decode("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(
            f"the key file {path} cannot be read: {error}",
            code="serve.key-file",
            expected="a text file of keys, one a line",
            next="check the path and its permissions",
        ) from error
    if mode & 0o077:
        raise DataError(
            f"the key file {path} is readable by other users",
            code="serve.key-file",
            expected="a file that only its owner can read",
            next=f"chmod 600 {path}",
        )
    return text


def _parse_line(words: list[str], path: Path) -> ApiKey:
    """Parse a line of a key file; unknown words are refused, not ignored."""
    tenant, principals, scopes = "", [], set()
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if (
            not (equals and value)
            or name not in {"tenant", "principal", "scope"}
            or (name == "tenant" and tenant)
            or (name == "scope" and value not in SCOPES)
        ):
            raise _key_file_error(path, f"{word!r:.40} after a key is not recognized", _LINE_FORMAT)
        if name == "tenant":
            tenant = value
        elif name == "scope":
            scopes.add(value)
        else:
            principals.append(value)
    if principals and not tenant:
        raise _key_file_error(path, "a key has principals but no tenant", _LINE_FORMAT)
    access = AccessContext(tenant, principals) if tenant else None
    return ApiKey(words[0], access, frozenset(scopes) or SCOPES)


_LINE_FORMAT = (
    "KEY, or KEY tenant=NAME principal=LABEL scope=SCOPE ..., and # before comments; scopes are "
    f"{', '.join(sorted(SCOPES))}"
)


def _key_file_error(path: Path | None, message: str, expected: str) -> DataError:
    return DataError(
        message,
        code="serve.key-file",
        where=str(path or _ENVIRONMENT_VARIABLE),
        expected=expected,
        next="correct the line; keys are not printed here",
    )


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds on requests; a request over a limit is refused with the figure, never truncated.

    ``running`` generations run at once (0: as many as the engine supports, which may be one), and
    ``waiting`` more may wait in the queue for ``wait_s``; beyond that a client is asked to retry
    later. Recipe checks and media checks run one at a time, and up to ``checks`` more of each may
    wait; a media check gets its place in the queue before its body is read. ``requests_per_minute``
    applies to each key (0: unlimited); ``followers`` is the number of concurrent event streams of
    jobs.
    """

    body_bytes: int = 1_000_000
    body_s: float = 30.0
    upload_bytes: int = 200_000_000
    upload_s: float = 600.0
    uploads: int = 8
    messages: int = 200
    max_new_tokens: int = 2048
    default_new_tokens: int = 256
    choices: int = 8
    texts: int = 256
    running: int = 0
    waiting: int = 128
    checks: int = 8
    wait_s: float = 300.0
    timeout_s: float = 300.0
    retry_after_s: int = 2
    drain_s: int = 30
    requests_per_minute: int = 0
    followers: int = 64


LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def parse_host_name(host: str) -> str:
    """Return the host name, without port, of a Host header or of an origin without scheme."""
    host = host.strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
