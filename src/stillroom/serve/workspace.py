"""Workspace: the folder in which jobs of clients run, and the part of it that each tenant sees.

Without tenants names start at the folder itself; with them at ``tenants/NAME``, and what the
operator links there from ``shared`` may be read by all who are given the link. Every name is
resolved, links and all, before it is used. Knows nothing of recipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stillroom.errors import DataError, ResourceError

__all__ = ["CONTROL", "Entry", "Root", "Workspace"]

CONTROL = ".stillroom"
_JOBS = "jobs"
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MOST_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder, by its name inside a root; folders have no size."""

    path: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Root:
    """The folder that one tenant's names start at, and what its links may lead to."""

    folder: Path
    shared: Path | None = None

    @property
    def jobs(self) -> Path:
        """Where its jobs' folders lie."""
        return self.folder / _JOBS

    def holds(self, name: Path) -> bool:
        """Return whether a name stays inside, whatever links it goes through; it need not exist."""
        try:
            real = Path(os.path.realpath(self.folder / name))
        except (OSError, ValueError):
            return False
        roots = [self.folder, *([self.shared] if self.shared else [])]
        return any(real.is_relative_to(os.path.realpath(root)) for root in roots)

    def list(self, name: str = "") -> tuple[list[Entry], bool]:
        """Return what lies in a folder inside, and whether that is all of it.

        Raises:
            DataError: If there is no such folder, or it leads outside.
        """
        folder = self.find(name)
        if not folder.is_dir():
            raise _missing(name)
        found: list[Entry] = []
        for path in sorted(folder.iterdir()):
            inner = path.relative_to(self.folder)
            if path.name.startswith(".") or not self.holds(inner):
                continue
            if len(found) == _MOST_ENTRIES:
                return found, False
            try:
                size = None if path.is_dir() else path.stat().st_size
            except OSError:  # a link to nothing, or a file that went meanwhile
                continue
            found.append(Entry(inner.as_posix(), size))
        return found, True

    def find(self, name: str) -> Path:
        """Return the path of a name inside.

        Raises:
            DataError: If it leads outside, names something hidden, or is not there.
        """
        parts = Path(name).parts
        is_plain = "\0" not in name and "\\" not in name and not name.startswith("/")
        if not is_plain or any(part.startswith(".") for part in parts):
            raise _missing(name)
        path = self.folder.joinpath(*parts)
        if not self.holds(Path(name)) or not os.path.exists(path):  # noqa: PTH110  # of any length
            raise _missing(name)
        return path


class Workspace:
    """The served folder; one server at a time holds it."""

    def __init__(self, folder: Path, *, has_tenants: bool = False) -> None:
        """Stand over a folder; ``open`` makes what is missing and takes it."""
        self.folder, self.has_tenants = folder.absolute(), has_tenants
        self._lock: IO[str] | None = None

    @property
    def control(self) -> Path:
        """Where the server keeps what it knows of every job; never named by a recipe."""
        return self.folder / CONTROL / _JOBS

    @property
    def scratch(self) -> Path:
        """Below which each job puts files that nobody needs after it; emptied at the start."""
        return self.folder / CONTROL / "scratch"

    @contextlib.asynccontextmanager
    async def lend_scratch(self) -> AsyncIterator[Path]:
        """Make a folder for one process, which no other sees; it is gone when the body ends."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        try:
            yield folder
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def cache_of(self, tenant: str) -> Path:
        """Return where a tenant's jobs keep what the next of them may use."""
        return self.scratch / f"cache-{tenant or self.folder.name}"

    def fits(self, tenant: str) -> bool:
        """Return whether jobs of a tenant have a place here: without tenants, nobody's alone."""
        return bool(_TENANT.match(tenant)) if self.has_tenants else not tenant

    def folder_of(self, tenant: str) -> Path:
        """Return where a tenant's names start; nothing is made or looked at."""
        return self.folder / "tenants" / tenant if self.has_tenants else self.folder

    def root(self, tenant: str) -> Root:
        """Return the root of a tenant; made when it is first asked for.

        Raises:
            DataError: If the tenant's name cannot be that of a folder.
        """
        if self.has_tenants and not self.fits(tenant):
            raise DataError(
                f"tenant {tenant!r:.40} cannot have a folder",
                code="serve.tenant-name",
                expected="letters, digits, '.', '_' and '-', at most 64",
                next="rename the tenant in the file of keys",
            )
        shared = self.folder / "shared" if self.has_tenants else None
        root = Root(self.folder_of(tenant), shared)
        root.jobs.mkdir(parents=True, exist_ok=True)
        return root

    @contextlib.contextmanager
    def open(self) -> Iterator[Workspace]:
        """Hold the folder until the body ends.

        Raises:
            DataError: If it is missing.
            ResourceError: If another server holds it.
        """
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder} is not a folder",
                code="data.missing",
                where="--jobs",
                expected="the folder that jobs run in",
                next=f"mkdir {self.folder}",
            )
        self.control.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / CONTROL / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ResourceError(
                    f"another server runs jobs in {self.folder}",
                    code="resource.busy",
                    where="--jobs",
                    expected="one server a folder",
                    next="stop it, or give another --jobs",
                ) from error
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch.mkdir(mode=0o700)
            yield self


def _missing(name: str) -> DataError:
    return DataError(
        f"{name!r:.200} is not in the served folder",
        code="data.missing",
        expected="a name inside it",
        next="choose from the list of what lies there: GET /v1/workspace, or a page of the console",
    )
