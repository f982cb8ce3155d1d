"""Folders of objects: a copy kept here, and a folder sent so that it appears whole.

An object store renames nothing. What makes a folder whole is its manifest (``artifact.json``),
which is sent last and removed first: who reads a folder without one reads an unfinished one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.objects.address import connect, is_address, joined, told

__all__ = ["MANIFEST", "Remote", "fetch", "local", "mirror", "publish", "remote_of"]

MANIFEST = "artifact.json"


@dataclass(frozen=True)
class Remote:
    """Where a mirrored folder comes from, and its objects that were left there: size by name."""

    address: str
    left: dict[str, int]


def mirror(
    address: str, *, leaves: Callable[[str], bool] = lambda name: False, cache: Path | None = None
) -> Path:
    """Return a folder here with the objects of a folder there; what did not change stays.

    Args:
        address: Of a folder, or of one object.
        leaves: Says of a name below the folder whether the object is left where it is, to be read
            by ranges.
        cache: Where copies are kept; default the user's cache.

    Returns:
        The folder, or the file where the address is of one object.

    Raises:
        DataError: If there is nothing, a name leads outside, or the store does not answer.
        ResourceError: If the disk is full.
    """
    home = cache or _cache_folder()
    folder = home / hashlib.sha256(address.encode()).hexdigest()[:20]
    found, is_file = _list(address)
    kept = _read_note(folder)
    for name, entry in found.items():
        target = folder / name
        if leaves(name):
            target.unlink(missing_ok=True)
        elif not target.is_file() or kept.get(name) != entry:
            _download(address if is_file else joined(address, name), target)
    for path in [*folder.rglob("*")] if folder.is_dir() else []:
        if path.is_file() and path.relative_to(folder).as_posix() not in found:
            path.unlink()
    left = {name: entry["size"] for name, entry in found.items() if leaves(name)}
    note = {"address": address, "objects": found, "left": left}
    temporary = _note_of(folder).with_suffix(f".{os.getpid()}.tmp")
    home.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(note, indent=1))
    temporary.replace(_note_of(folder))
    return folder / next(iter(found)) if is_file else folder


def local(reference: str) -> Path:
    """Return the path that a reference names: a mirror where it is an address.

    Raises:
        DataError: As ``mirror`` does.
    """
    return mirror(reference) if is_address(reference) else Path(reference)


def remote_of(folder: Path) -> Remote | None:
    """Return where a mirrored folder comes from; None where it is none."""
    note = _note_of(folder)
    if not note.is_file():
        return None
    values = json.loads(note.read_text())
    return Remote(values["address"], values["left"])


def publish(folder: Path, address: str, *, overwrite: bool = False) -> int:
    """Send a folder with a manifest; return how many objects were sent.

    Raises:
        DataError: If the folder is unfinished, another lies at the address and ``overwrite`` is
            not given, or the store refuses.
    """
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"{folder} holds no {MANIFEST}: it is no finished job",
            code="object.unfinished",
            expected="the folder of a finished job",
            next="finish it with --resume",
        )
    store, base = connect(address)
    with told(address):
        before = set(store.find(base))
        manifest = joined(base, MANIFEST)
        if before and not overwrite:
            raise DataError(
                f"something lies at {address} already",
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
            store.put_file(str(folder / name), joined(base, name))
        sent = {joined(base, name) for name in names}
        for path in before:
            if path.strip("/") not in {one.strip("/") for one in sent}:
                store.rm_file(path)
        store.invalidate_cache()
    return len(names)


def fetch(address: str, folder: Path) -> int:
    """Bring a published folder here, manifest last; return how many files came.

    Raises:
        DataError: If there is no manifest, or the folder is there already.
    """
    if folder.exists():
        raise DataError(
            f"{folder} exists already",
            code="data.exists",
            expected="a new folder",
            next="choose another",
        )
    found, is_file = _list(address)
    if is_file or MANIFEST not in found:
        raise DataError(
            f"{address} holds no {MANIFEST}",
            code="object.unfinished",
            expected="what `stillroom publish` has sent, whole",
            next="publish it again",
        )
    for name in [*(name for name in found if name != MANIFEST), MANIFEST]:
        _download(joined(address, name), folder / name)
    return len(found)


def _list(address: str) -> tuple[dict[str, dict[str, Any]], bool]:
    """Return size and mark of every object below an address, and whether it is one object."""
    store, base = connect(address)
    with told(address):
        store.invalidate_cache()
        listed = store.find(base, detail=True)
        if not listed:
            raise FileNotFoundError(address)
    is_file = len(listed) == 1 and next(iter(listed)).strip("/") == base.strip("/")
    found = {}
    for path, entry in sorted(listed.items()):
        inside = path.strip("/").removeprefix(base.strip("/")).strip("/")
        name = inside or base.rsplit("/", 1)[-1]
        if ".." in name.split("/") or "\0" in name or "\\" in name:
            raise _outside(address, name)
        mark = entry.get("ETag") or entry.get("etag") or entry.get("mtime") or ""
        if name and entry.get("type") != "directory" and not path.endswith("/"):
            found[name] = {"size": int(entry["size"]), "mark": str(mark)}
    return found, is_file


def _download(address: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    store, path = connect(address)
    try:
        with told(address):
            store.get_file(path, str(temporary))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _read_note(folder: Path) -> dict[str, Any]:
    note = _note_of(folder)
    if not note.is_file():
        return {}
    found: dict[str, Any] = json.loads(note.read_text())["objects"]
    return found


def _note_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.objects.json")


def _cache_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "stillroom" / "objects"


def _outside(address: str, name: str) -> DataError:
    return DataError(
        f"the object {name!r:.120} has a name that leads outside of its folder",
        code="object.name",
        where=address,
        expected="names of plain files",
        next="rename the object",
    )
