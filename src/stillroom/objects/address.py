"""Object storage (S3, through fsspec): opening, range reads and atomic writes by address."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from stillroom.errors import DataError, MissingExtraError

__all__ = [
    "ObjectFile",
    "connect",
    "exists",
    "is_address",
    "is_store_address",
    "join_address",
    "open_for_writing",
    "read_range",
    "store_failure_as_error",
]

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "memory": ""}
"""Known schemes and the package for each; ``memory`` is fsspec's own, for tests."""
_READ_BYTES = 1 << 20
_BLOCK_BYTES = 16 << 20
"""Bytes per part of an upload; S3 accepts 10,000 parts per object."""


def is_address(text: str) -> bool:
    """Return whether a text is an address (``s3://...``) rather than a path."""
    return _ADDRESS.fullmatch(text) is not None


def is_store_address(text: str) -> bool:
    """Return whether a text is the address of a supported store, not of an endpoint."""
    match = _ADDRESS.fullmatch(text)
    return match is not None and match[1] in _PACKAGES


def connect(address: str) -> tuple[Any, str]:
    """Return the store of an address, and the path within it.

    Raises:
        DataError: If the scheme is not known, or the address has no bucket or holds credentials.
        MissingExtraError: If the package for the scheme is not installed.
    """
    match = _ADDRESS.fullmatch(address)
    scheme, location = (match[1], match[2]) if match else ("", "")
    if scheme not in _PACKAGES or not location.strip("/"):
        problem = "names no bucket" if scheme in _PACKAGES else "is not a store that can be read"
        raise DataError(
            f"'{scheme}://' {problem}" if match else "this is not an address",
            code="object.scheme",
            where=address.split("@")[-1][:200],
            expected="a path, or an address such as s3://bucket/folder, gs:// or abfs://",
            next="copy the files to one of these, or to this machine",
        )
    if "@" in location.split("/")[0] or "?" in location:
        raise DataError(
            "an address holds no credentials and no settings",
            code="object.credentials",
            where=f"{scheme}://...",
            expected=f"{scheme}://bucket/folder",
            next="export AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, or what "
            "the store's own tools read",
        )
    try:
        import fsspec

        store = fsspec.filesystem(scheme, **_settings(scheme))
    except ImportError as error:
        package = _PACKAGES[scheme]
        raise MissingExtraError.of(package, "s3", f"{scheme}://") from error
    return store, location.rstrip("/")


@contextmanager
def store_failure_as_error(address: str) -> Iterator[None]:
    """Convert exceptions of a store into an error with the address.

    Raises:
        DataError: If the object is missing, or the store refuses or does not answer.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"{address} does not exist",
            code="object.missing",
            expected="an object, or a folder of objects",
            next="check bucket and name",
        ) from error
    except Exception as error:
        if not _is_store_error(error):
            raise
        raise DataError(
            f"{address} cannot be reached: {str(error) or type(error).__name__:.200}",
            code="object.unreachable",
            expected="a store that answers, and credentials that it takes",
            next="check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ) from error


def exists(address: str) -> bool:
    """Return whether there is an object at an address.

    Raises:
        DataError: If the store does not answer.
    """
    store, path = connect(address)
    with store_failure_as_error(address):
        store.invalidate_cache()
        try:
            return bool(store.info(path)["type"] == "file")
        except FileNotFoundError:
            return False


class ObjectFile:
    """An object that readers open like a file."""

    def __init__(self, address: str) -> None:
        """Create without contacting the store."""
        self.address = address

    def __str__(self) -> str:
        """Return the address."""
        return self.address

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rsplit("/", 1)[-1]

    @property
    def size_bytes(self) -> int:
        """The object's size.

        Raises:
            DataError: If it is missing, or the store does not answer.
        """
        store, path = connect(self.address)
        with store_failure_as_error(self.address):
            return int(store.size(path))

    @contextmanager
    def open(self, mode: str = "rb") -> Iterator[IO[bytes]]:
        """Read the object in parts on demand.

        Raises:
            DataError: If it is missing, or the store does not answer.
        """
        store, path = connect(self.address)
        with store_failure_as_error(self.address), store.open(path, mode) as file:
            yield io.BufferedReader(file, _READ_BYTES)


def read_range(address: str, start: int, stop: int) -> bytes:
    """Return bytes ``start`` to ``stop`` of an object.

    Raises:
        DataError: If it is missing, shorter, or cannot be reached.
    """
    store, path = connect(address)
    with store_failure_as_error(address):
        data = bytes(store.cat_file(path, start=start, end=stop))
    if len(data) != stop - start:
        raise DataError(
            f"{address} ended at byte {start + len(data)} while it was read",
            code="object.changed",
            expected="objects that do not change meanwhile",
            next="run again",
        )
    return data


@contextmanager
def open_for_writing(address: str) -> Iterator[IO[bytes]]:
    """Write an object that appears if the body succeeds, and not otherwise.

    An existing object stays until then: parts are sent as they come, and the store assembles them
    at the end.

    Raises:
        DataError: If the store refuses or does not answer.
    """
    store, path = connect(address)
    with store_failure_as_error(address):
        file = store.open(path, "wb", block_size=_BLOCK_BYTES, autocommit=False)
        try:
            yield cast("IO[bytes]", file)
            file.flush(force=True)
        except BaseException:
            file.closed = True
            file.discard()
            raise
        file.closed = True
        file.commit()
        store.invalidate_cache()


def join_address(address: str, name: str) -> str:
    """Return the address of a file below a folder's address."""
    return f"{address.rstrip('/')}/{name}"


def _settings(scheme: str) -> dict[str, Any]:
    if scheme != "s3":
        return {"skip_instance_cache": False}
    return {"default_block_size": _BLOCK_BYTES, "use_listings_cache": False}


def _is_store_error(error: Exception) -> bool:
    """Return whether an error is a store's: an OSError, or one of the libraries under fsspec."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package in {"botocore", "aiobotocore", "aiohttp"}
