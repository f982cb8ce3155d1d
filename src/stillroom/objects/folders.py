"""Folders of objects that are sent and brought so that they appear whole.

An object store renames nothing. What makes a folder whole is its manifest (``artifact.json``),
which is sent last and removed first: who reads a folder without one reads an unfinished one.
"""

from __future__ import annotations

from pathlib import Path

from stillroom.errors import DataError
from stillroom.objects.address import connect, joined, told
from stillroom.objects.mirrors import download, list_objects

__all__ = ["MANIFEST", "fetch", "publish"]

MANIFEST = "artifact.json"


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
        try:
            before = set(store.find(base))
        except FileNotFoundError as error:
            raise DataError(
                f"the bucket of {address} does not exist",
                code="object.missing",
                expected="a bucket that is there: publishing makes none",
                next="make it with the store's own tools, or check its name",
            ) from error
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
    found, is_object = list_objects(address)
    if is_object or MANIFEST not in found:
        raise DataError(
            f"{address} holds no {MANIFEST}",
            code="object.unfinished",
            expected="what `stillroom publish` has sent, whole",
            next="publish it again",
        )
    for name in [*(name for name in found if name != MANIFEST), MANIFEST]:
        download(joined(address, name), folder / name)
    return len(found)
