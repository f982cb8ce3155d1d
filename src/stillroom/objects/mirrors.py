"""Local mirrors of remote folders, and publishing and fetching of job folders.

Mirrors are shared by all jobs of a user, so they are changed under a lock, file by file: each file
appears atomically, and files deleted in the store are deleted here. Copies are compared with the
store by size and version (ETag, or modification time) and with the local file by size and
modification time, so that changed objects and damaged copies are both detected. A job that reads a
mirror during an update sees the changes; readers of documents verify each by its digest.

An object store has no rename. A folder is complete if it has a manifest (``artifact.json``), which
is uploaded last and removed first; a folder without one is unfinished.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from stillroom.errors import DataError
from stillroom.objects.address import connect, is_address, join_address, store_failure_as_error
from stillroom.objects.disk import atomic_path, atomic_write, full_disk_as_error

__all__ = [
    "MANIFEST",
    "RemoteFolder",
    "download",
    "fetch_folder",
    "find_address",
    "find_remote",
    "list_objects",
    "mirror_folder",
    "publish_folder",
    "resolve_local",
]

_NOTE_INTERVAL_S = 30.0
"""Seconds between saves of the list of copies during an update."""
_SPACE_FOR_COPIES = "free some space, or set XDG_CACHE_HOME to a folder on a larger disk"


@dataclass(frozen=True)
class RemoteFolder:
    """Source address of a mirror, and its objects that were not copied: size by name."""

    address: str
    left: dict[str, int]
    is_object: bool = False


def mirror_folder(address: str, *, leaves: tuple[str, ...] = (), cache: Path | None = None) -> Path:
    """Mirror a remote folder locally; unchanged files stay.

    Args:
        address: Address of a folder, or of one object.
        leaves: Endings of names whose objects are not copied but read by ranges; such a mirror is
            separate from a complete one.
        cache: Folder of the copies; by default the user's cache.

    Returns:
        The folder, or the file if the address is that of one object.

    Raises:
        DataError: If there is nothing, a name leads outside, an object changes during the copy,
            or the store does not answer.
        ResourceError: If the disk is full.
    """
    address = address.rstrip("/")
    home = cache or _cache_folder()
    told_apart = "\n".join([address, *leaves])
    folder = home / hashlib.sha256(told_apart.encode()).hexdigest()[:20]
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock"), fallback_to_soft=False):  # waits
        objects, is_object = list_objects(address)
        _LockedMirror(address, folder, leaves, objects, is_object).update()
    return folder / next(iter(objects)) if is_object else folder


def resolve_local(reference: str) -> Path:
    """Return the local path of a reference; a mirror if it is an address.

    Raises:
        DataError: As ``mirror_folder`` does.
    """
    return mirror_folder(reference) if is_address(reference) else Path(reference)


def find_remote(folder: Path) -> RemoteFolder | None:
    """Return the source of a mirrored folder; None if it is not a mirror."""
    note = _read_note(folder.absolute())
    if not note:
        return None
    return RemoteFolder(note["address"], note["left"], note.get("is_object", False))


def find_address(path: Path) -> str:
    """Return the address of a file or folder in a mirror; empty if it is in none."""
    path = path.absolute()
    for folder in (path, *path.parents):
        remote = find_remote(folder)
        if remote is not None:
            inside = path.relative_to(folder).as_posix()
            is_whole = inside == "." or remote.is_object
            return remote.address if is_whole else join_address(remote.address, inside)
    return ""


@dataclass
class _LockedMirror:
    """A mirror locked by this process."""

    address: str
    folder: Path
    leaves: tuple[str, ...]
    found: Mapping[str, dict[str, Any]]
    is_object: bool

    def update(self) -> None:
        """Remove deleted files, copy new or changed ones, and save the list of copies."""
        before = _read_note(self.folder)
        notes = {
            name: entry
            for name, entry in before.get("objects", {}).items()
            if self._is_same(name, entry)
        }
        missing = (
            {name for name in self.found if name.endswith(self.leaves)} if self.leaves else set()
        )
        pending = [name for name in self.found if name not in missing and name not in notes]
        self._remove()
        copied, noted = [], time.monotonic()
        try:
            for name in pending:
                source = self.address if self.is_object else join_address(self.address, name)
                download(source, self.folder / name)
                notes[name] = self.found[name] | {"here": _local_version(self.folder / name)}
                copied.append(name)
                if time.monotonic() - noted > _NOTE_INTERVAL_S:  # bounds the loss after a kill
                    self._note(notes, missing)
                    noted = time.monotonic()
            changed = self._changed(copied)
            for name in changed:
                notes.pop(name)
        finally:
            if copied or self._outline(notes, missing) != before:
                self._note(notes, missing)
        if changed:
            raise _changed_error(self.address, changed)

    def _is_same(self, name: str, entry: Mapping[str, Any]) -> bool:
        """Return whether a local file is the unchanged copy of the current object."""
        there = self.found.get(name)
        if there is None or any(entry.get(key) != value for key, value in there.items()):
            return False
        return bool(entry.get("here")) and entry["here"] == _local_version(self.folder / name)

    def _remove(self) -> None:
        """Remove files without an object, and folders that become empty."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.rglob("*"), reverse=True):  # deepest first
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in self.found:
                path.unlink()

    def _changed(self, copied: list[str]) -> list[str]:
        """Return the copied objects that changed since they were listed."""
        if not copied:
            return []
        now, _ = list_objects(self.address)
        return [
            name
            for name in copied
            if now.get(name) != self.found[name]
            or (self.folder / name).stat().st_size != self.found[name]["size"]
        ]

    def _outline(self, notes: Mapping[str, Any], missing: set[str]) -> dict[str, Any]:
        return {
            "address": self.address,
            "is_object": self.is_object,
            "objects": dict(sorted(notes.items())),
            "left": {name: self.found[name]["size"] for name in sorted(missing)},
            "marks": {name: self.found[name]["mark"] for name in sorted(missing)},
        }

    def _note(self, notes: Mapping[str, Any], missing: set[str]) -> None:
        note = _note_path(self.folder)
        with atomic_write(note, is_synced=False) as file:
            json.dump(self._outline(notes, missing), file, indent=1)


def list_objects(address: str) -> tuple[dict[str, dict[str, Any]], bool]:
    """Return size and version of every object below an address, and whether it is one object.

    Raises:
        DataError: If there is nothing, a name leads outside, or the store does not answer.
    """
    store, base = connect(address)
    with store_failure_as_error(address):
        store.invalidate_cache()
        listed = store.find(base, detail=True)
        if not listed:
            raise FileNotFoundError(address)
    is_object = len(listed) == 1 and next(iter(listed)).strip("/") == base.strip("/")
    objects = {}
    for path, entry in sorted(listed.items()):
        inside = path.strip("/").removeprefix(base.strip("/")).strip("/")
        name = inside or base.rsplit("/", 1)[-1]
        if ".." in name.split("/") or "\0" in name or "\\" in name:
            raise _outside_error(address, name, "leads outside of its folder")
        if name and entry.get("type") != "directory" and not path.endswith("/"):
            objects[name] = {"size": int(entry["size"]), "mark": _remote_version(entry)}
    for name in objects:
        if any(
            "/".join(name.split("/")[:offset]) in objects
            for offset in range(1, name.count("/") + 1)
        ):
            raise _outside_error(
                address, name, "lies below another object as if that were a folder"
            )
    return objects, is_object


def download(address: str, target: Path) -> None:
    """Copy one object to a file atomically.

    Raises:
        DataError: If it is missing, or the store does not answer.
        ResourceError: If the disk is full.
    """
    store, path = connect(address)
    with (
        atomic_path(target, is_synced=False) as temporary,
        store_failure_as_error(address),
        full_disk_as_error(target, next=_SPACE_FOR_COPIES),
    ):
        store.get_file(path, str(temporary))


def _remote_version(entry: Mapping[str, Any]) -> str:
    """Return the version of an object: its ETag, or its modification time."""
    for key in ("ETag", "etag", "mtime", "LastModified", "created"):
        if entry.get(key):
            return str(entry[key])
    return ""


def _local_version(path: Path) -> list[int]:
    """Return size and modification time of a file; empty if there is none."""
    try:
        state = path.stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


def _read_note(folder: Path) -> dict[str, Any]:
    """Return the saved list of a mirror; empty if the folder is none, or a loss of power cut it."""
    if not folder.name or not (note := _note_path(folder)).is_file():
        return {}
    try:
        saved = json.loads(note.read_text())
    except (ValueError, RecursionError):
        return {}
    return saved if isinstance(saved, dict) and "address" in saved else {}


def _note_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.objects.json")


def _cache_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "stillroom" / "objects"


def _outside_error(address: str, name: str, how: str) -> DataError:
    return DataError(
        f"the object {name!r:.120} has a name that {how}",
        code="object.name",
        where=address,
        expected="names of plain files",
        next="rename the object",
    )


def _changed_error(address: str, names: list[str]) -> DataError:
    return DataError(
        f"{len(names)} objects changed while they were copied, the first is {names[0]!r:.120}",
        code="object.changed",
        where=address,
        expected="objects that do not change meanwhile",
        next="run again",
    )


MANIFEST = "artifact.json"


def publish_folder(folder: Path, address: str, *, overwrite: bool = False) -> int:
    """Upload a folder with a manifest; return the number of objects.

    Raises:
        DataError: If the folder is unfinished, another lies at the address and ``overwrite`` is
            not given, or the store refuses.
    """
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"{folder} holds no {MANIFEST}: it is not a finished job",
            code="object.unfinished",
            expected="the folder of a finished job",
            next="finish it with --resume",
        )
    store, base = connect(address)
    with store_failure_as_error(address):
        try:
            before = set(store.find(base))
        except FileNotFoundError as error:
            raise DataError(
                f"the bucket of {address} does not exist",
                code="object.missing",
                expected="an existing bucket: publishing does not create one",
                next="create it with the store's own tools, or check its name",
            ) from error
        manifest = join_address(base, MANIFEST)
        if before and not overwrite:
            raise DataError(
                f"{address} is not empty",
                code="object.exists",
                expected="an address with nothing below it",
                next="choose another, or replace it with --overwrite",
            )
        if any(path.endswith(f"/{MANIFEST}") and path.strip("/") == manifest for path in before):
            store.rm_file(manifest)
        names = sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )
        for name in [*(name for name in names if name != MANIFEST), MANIFEST]:
            store.put_file(str(folder / name), join_address(base, name))
        sent = {join_address(base, name) for name in names}
        for path in before:
            if path.strip("/") not in {path.strip("/") for path in sent}:
                store.rm_file(path)
        store.invalidate_cache()
    return len(names)


def fetch_folder(address: str, folder: Path) -> int:
    """Download a published folder, manifest last; return the number of files.

    Raises:
        DataError: If there is no manifest, or the folder exists already.
    """
    if folder.exists():
        raise DataError(
            f"{folder} exists already",
            code="data.exists",
            expected="a new folder",
            next="choose another",
        )
    objects, is_object = list_objects(address)
    if is_object or MANIFEST not in objects:
        raise DataError(
            f"{address} holds no {MANIFEST}",
            code="object.unfinished",
            expected="a complete folder sent by `stillroom publish`",
            next="publish it again",
        )
    for name in [*(name for name in objects if name != MANIFEST), MANIFEST]:
        download(join_address(address, name), folder / name)
    return len(objects)
