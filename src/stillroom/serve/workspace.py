"""Workspace of client jobs: tenant folders, and redaction of server paths in replies.

Without tenants names are relative to the folder; with tenants to ``tenants/NAME``, and what the
operator links there from ``shared`` is readable by the tenants that have the link. Every name is
resolved, including links, before it is used. Knows nothing of recipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from stillroom.errors import DataError, ResourceError
from stillroom.evaluate.qa.judgments import JUDGMENTS_SUFFIX
from stillroom.jobs.files import lock_folder

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
    """File or folder, by its name relative to a root; folders have no size."""

    path: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class TenantRoot:
    """Root folder of one tenant, and the folders that its links may lead to."""

    folder: Path
    shared: Path | None = None

    @property
    def jobs(self) -> Path:
        """Folder of the tenant's jobs."""
        return self.folder / _JOBS_FOLDER

    def contains(self, name: Path) -> bool:
        """Return whether a name resolves to a path inside, through any links; it need not exist."""
        try:
            real = Path(os.path.realpath(self.folder / name))
        except (OSError, ValueError):
            return False
        roots = [self.folder, *([self.shared] if self.shared else [])]
        return any(real.is_relative_to(os.path.realpath(root)) for root in roots)

    def list(self, name: str = "") -> tuple[list[WorkspaceEntry], bool]:
        """Return the entries of a folder inside, and whether the list is complete.

        Raises:
            DataError: If there is no such folder, or it resolves to a path outside.
        """
        folder = self.find(name)
        if not folder.is_dir():
            raise _not_found(name)
        entries: list[WorkspaceEntry] = []
        for path in sorted(folder.iterdir()):
            inner = path.relative_to(self.folder)
            if _is_hidden_name(path.name) or not self.contains(inner):
                continue
            if len(entries) == _MAX_ENTRIES:
                return entries, False
            try:
                size = None if path.is_dir() else path.stat().st_size
            except OSError:  # a broken link, or a file removed meanwhile
                continue
            entries.append(WorkspaceEntry(inner.as_posix(), size))
        return entries, True

    def find(self, name: str) -> Path:
        """Return the path of a name inside.

        Raises:
            DataError: If it resolves to a path outside, is hidden, or does not exist.
        """
        parts = Path(name).parts
        is_plain = "\0" not in name and "\\" not in name and not name.startswith("/")
        if not is_plain or any(map(_is_hidden_name, parts)):
            raise _not_found(name)
        path = self.folder.joinpath(*parts)
        if not self.contains(Path(name)) or not os.path.exists(path):  # noqa: PTH110  # of any length
            raise _not_found(name)
        return path


def _is_hidden_name(name: str) -> bool:
    """Return whether clients see no file of a name: hidden files, and what people judged."""
    return name.startswith(".") or name.lower().endswith(JUDGMENTS_SUFFIX)


class Workspace:
    """Served folder; locked by one server at a time."""

    def __init__(self, folder: Path, *, has_tenants: bool = False) -> None:
        """Set the folder; ``open`` creates subfolders and locks it."""
        self.folder, self.has_tenants = folder.absolute(), has_tenants

    @property
    def control(self) -> Path:
        """Folder of job records; no recipe can refer to it."""
        return self.folder / CONTROL_FOLDER / _JOBS_FOLDER

    @property
    def scratch(self) -> Path:
        """Folder of temporary folders of jobs; emptied at startup."""
        return self.folder / CONTROL_FOLDER / "scratch"

    @contextlib.asynccontextmanager
    async def lend_scratch(self) -> AsyncIterator[Path]:
        """Create a temporary folder for one process, removed when the body ends."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        try:
            yield folder
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def cache_of(self, tenant: str) -> Path:
        """Return the folder in which a tenant's jobs cache files for later jobs."""
        return self.scratch / f"cache-{tenant or self.folder.name}"

    def fits(self, tenant: str) -> bool:
        """Return whether jobs of a tenant can run here; without tenants only the empty name can."""
        return bool(_TENANT_PATTERN.match(tenant)) if self.has_tenants else not tenant

    def folder_of(self, tenant: str) -> Path:
        """Return the folder that a tenant's names are relative to; it need not exist."""
        return self.folder / "tenants" / tenant if self.has_tenants else self.folder

    def root(self, tenant: str) -> TenantRoot:
        """Return the root of a tenant, created on first use.

        Raises:
            DataError: If the tenant's name is not a valid folder name.
        """
        if self.has_tenants and not self.fits(tenant):
            raise DataError(
                f"the name of tenant {tenant!r:.40} is not a valid folder name",
                code="serve.tenant-name",
                expected="letters, digits, '.', '_' and '-', at most 64",
                next="rename the tenant in the key file",
            )
        shared = self.folder / "shared" if self.has_tenants else None
        root = TenantRoot(self.folder_of(tenant), shared)
        root.jobs.mkdir(parents=True, exist_ok=True)
        return root

    @contextlib.contextmanager
    def open(self) -> Iterator[Workspace]:
        """Lock the folder until the body ends.

        Raises:
            DataError: If it does not exist.
            ResourceError: If another server has locked it.
        """
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder} is not a folder",
                code="data.missing",
                where="--jobs",
                expected="an existing folder for jobs",
                next=f"mkdir {self.folder}",
            )
        self.control.mkdir(parents=True, exist_ok=True, mode=0o700)
        busy = ResourceError(
            f"another server runs jobs in {self.folder}",
            code="resource.busy",
            where="--jobs",
            expected="one server for each folder",
            next="stop it, or give another --jobs",
        )
        with lock_folder(self.folder / CONTROL_FOLDER, busy):
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch.mkdir(mode=0o700)
            yield self


def _not_found(name: str) -> DataError:
    return DataError(
        f"{name!r:.200} is not in the served folder",
        code="data.missing",
        expected="a name inside it",
        next="choose one of GET /v1/workspace, or of a page of the console",
    )


def make_path_redactor(
    replacements: Mapping[str, str] | Mapping[Path, str],
) -> Callable[[Any], Any]:
    """Return a function that replaces absolute paths in JSON values by names.

    An empty name marks the folder that names are relative to. The innermost matching path wins.
    """
    names: dict[str, str] = {}
    for prefix, name in replacements.items():
        for path in (os.path.abspath(prefix), os.path.realpath(prefix)):  # noqa: PTH100
            if len(Path(path).parts) > 1:  # "/" is a prefix of every path
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
            return {key: hide(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [hide(item) for item in value]
        return value

    return hide


def replace_names(value: Any, names: Mapping[str, str]) -> Any:
    """Return a JSON value with names replaced in all of its strings.

    ``names`` are unique strings (random file names), with their replacements.
    """
    if isinstance(value, str):
        for name, replacement in names.items():
            value = value.replace(name, replacement)
        return value
    if isinstance(value, Mapping):
        return {key: replace_names(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_names(item, names) for item in value]
    return value
