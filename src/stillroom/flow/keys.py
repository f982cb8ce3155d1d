"""The digest of what a step takes: a path's contents, or a reference as it is written."""

from __future__ import annotations

from pathlib import Path

from stillroom.objects import is_stored, list_objects
from stillroom.provenance import ARTIFACT_FILE, digest_file, digest_json, read_artifact

__all__ = ["digest_input"]


def digest_input(value: str) -> str:
    """Return a digest that changes when what a reference points to changes.

    An artifact has its own digest; another folder or file is digested by names and bytes; a
    checkpoint's weights by name, size and time of change, since gigabytes would be read at every
    run otherwise, and so are objects in a store, with their marks. A reference to a hub is itself.

    Raises:
        DataError: If a store does not answer, or holds nothing at the address.
    """
    if is_stored(value):
        return digest_json(list_objects(value)[0])
    path = Path(value)
    if not path.is_absolute() or not path.exists():
        return ""
    if (path / ARTIFACT_FILE).is_file():
        return read_artifact(path).digest
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    entries = []
    for file in files:
        if not file.is_file():
            continue
        if file.suffix in {".safetensors", ".gguf", ".bin"}:
            mark = f"{file.stat().st_size} {file.stat().st_mtime_ns}"
        else:
            mark = digest_file(file)
        entries.append([file.relative_to(path.parent).as_posix(), mark])
    return digest_json(entries)
