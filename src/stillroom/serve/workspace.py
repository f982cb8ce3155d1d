"""Workspace of client jobs: tenant folders, and redaction of server paths in replies.

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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

from stillroom.errors import DataError, ResourceError

__all__ = [
    "CONTROL_FOLDER",
    "TenantRoot",
    "Workspace",
    "WorkspaceEntry",
    "make_path_redactor",
    "replace_names",
]


CONTROL_FOLDER = ".stillroom"


_JOBS_FOLDER = "jobs"


_TENANT_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


_MAX_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class WorkspaceEntry:
    """A file or folder, by its name inside a root; folders have no size."""

    path: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class TenantRoot:
    """The folder that one tenant's names start at, and what its links may lead to."""

    folder: Path
    shared: Path | None = None

    @property
    def jobs(self) -> Path:
        """Where its jobs' folders lie."""
        return self.folder / _JOBS_FOLDER

    def holds(self, name: Path) -> bool:
        """Return whether a name stays inside, whatever links it goes through; it need not exist."""
        try:
            real = Path(os.path.realpath(self.folder / name))
        except (OSError, ValueError):
            return False
        roots = [self.folder, *([self.shared] if self.shared else [])]
        return any(real.is_relative_to(os.path.realpath(root)) for root in roots)

    def list(self, name: str = "") -> tuple[list[WorkspaceEntry], bool]:
        """Return what lies in a folder inside, and whether that is all of it.

        Raises:
            DataError: If there is no such folder, or it leads outside.
        """
        folder = self.find(name)
        if not folder.is_dir():
            raise _not_found(name)
        found: list[WorkspaceEntry] = []
        for path in sorted(folder.iterdir()):
            inner = path.relative_to(self.folder)
            if path.name.startswith(".") or not self.holds(inner):
                continue
            if len(found) == _MAX_ENTRIES:
                return found, False
            try:
                size = None if path.is_dir() else path.stat().st_size
            except OSError:  # a link to nothing, or a file that went meanwhile
                continue
            found.append(WorkspaceEntry(inner.as_posix(), size))
        return found, True

    def find(self, name: str) -> Path:
        """Return the path of a name inside.

        Raises:
            DataError: If it leads outside, names something hidden, or is not there.
        """
        parts = Path(name).parts
        is_plain = "\0" not in name and "\\" not in name and not name.startswith("/")
        if not is_plain or any(part.startswith(".") for part in parts):
            raise _not_found(name)
        path = self.folder.joinpath(*parts)
        if not self.holds(Path(name)) or not os.path.exists(path):  # noqa: PTH110  # of any length
            raise _not_found(name)
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
        return self.folder / CONTROL_FOLDER / _JOBS_FOLDER

    @property
    def scratch(self) -> Path:
        """Below which each job puts files that nobody needs after it; emptied at the start."""
        return self.folder / CONTROL_FOLDER / "scratch"

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
        return bool(_TENANT_PATTERN.match(tenant)) if self.has_tenants else not tenant

    def folder_of(self, tenant: str) -> Path:
        """Return where a tenant's names start; nothing is made or looked at."""
        return self.folder / "tenants" / tenant if self.has_tenants else self.folder

    def root(self, tenant: str) -> TenantRoot:
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
        root = TenantRoot(self.folder_of(tenant), shared)
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
        with (self.folder / CONTROL_FOLDER / ".lock").open("a") as lock:
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


def _not_found(name: str) -> DataError:
    return DataError(
        f"{name!r:.200} is not in the served folder",
        code="data.missing",
        expected="a name inside it",
        next="choose from the list of what lies there: GET /v1/workspace, or a page of the console",
    )


def make_path_redactor(places: Mapping[str, str] | Mapping[Path, str]) -> Callable[[Any], Any]:
    """Return what puts names for places into JSON values.

    Args:
        places: Absolute paths, and what each is called instead; an empty name is that of the
            folder which names start at. The innermost path that fits counts.

    Returns:
        A function from a JSON value to the same with names in all of its texts.
    """
    names: dict[str, str] = {}
    for place, name in places.items():
        for path in (os.path.abspath(place), os.path.realpath(place)):  # noqa: PTH100
            if len(Path(path).parts) > 1:  # of "/" everything would be a part
                names.setdefault(path, name)
    if not names:
        return lambda value: value
    longest = sorted(names, key=len, reverse=True)
    pattern = re.compile(f"({'|'.join(map(re.escape, longest))})(/|(?![\\w.-]))")

    def put(match: re.Match[str]) -> str:
        name, slash = names[match[1]], match[2]
        return f"{name}{slash}" if name else "" if slash else "."

    def hide(value: Any) -> Any:
        if isinstance(value, (str, PurePath)):
            return pattern.sub(put, str(value))
        if isinstance(value, Mapping):
            return {key: hide(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [hide(one) for one in value]
        return value

    return hide


def replace_names(value: Any, names: Mapping[str, str]) -> Any:
    """Return a JSON value with names put for others in all of its texts.

    Args:
        value: Any JSON value, or what ``json`` takes for one.
        names: What stands nowhere by accident (a random file name), and what is said instead.
    """
    if isinstance(value, str):
        for own, told in names.items():
            value = value.replace(own, told)
        return value
    if isinstance(value, Mapping):
        return {key: replace_names(one, names) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_names(one, names) for one in value]
    return value
