"""What lies in the served folder: artifacts, and checkpoints made elsewhere.

Names are paths relative to the folder, with forward slashes; ``.`` is the folder itself. Hidden
folders and an artifact's own ``output`` are not walked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.provenance import ARTIFACT_FILE, Artifact, read_artifact
from stillroom.serve.workspace import Root

__all__ = [
    "Found",
    "find_inside",
    "is_artifact",
    "kind_of",
    "list_found",
    "name_of",
    "read_found",
    "read_json",
]

_MOST = 2_000
_DEPTH = 6
_NOT_WALKED = frozenset({"output", "node_modules", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Found:
    """One artifact or checkpoint of the folder.

    ``kind`` is an artifact's kind; ``is_run`` says that it answers questions by itself; ``origin``
    is ``human``, ``synthetic``, ``unknown`` or empty where it says nothing.
    """

    name: str
    kind: str
    digest: str = ""
    created: str = ""
    origin: str = ""
    license: str = ""
    size_bytes: int = 0
    is_run: bool = False
    recipe: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]


def is_artifact(folder: Path) -> bool:
    """Return whether a folder is what one job left."""
    return (folder / ARTIFACT_FILE).is_file()


def kind_of(folder: Path) -> str:
    """Return an artifact's kind (``broken`` where it cannot be read), checkpoint, or folder."""
    if is_artifact(folder):
        try:
            return read_artifact(folder).kind
        except DataError:
            return "broken"
    return "checkpoint" if _is_something(folder) else "folder"


def find_inside(root: Path, name: str) -> Path:
    """Return the path of a name inside the folder.

    Raises:
        DataError: If it leads outside, names something hidden, or is not there.
    """
    return Root(root).find(name)


def name_of(root: Path, path: Path | str) -> str:
    """Return the name of a path inside the folder, or an empty text for one outside."""
    real, top = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if not real.is_relative_to(top):
        return ""
    inner = real.relative_to(top)
    is_hidden = any(part.startswith(".") for part in inner.parts)
    return "" if is_hidden else inner.as_posix()


def list_found(root: Path) -> list[Found]:
    """Return what lies in the folder, the newest first; broken artifacts are of kind ``broken``."""
    found = [_look_at(root, folder) for folder in _walk(root)]
    return sorted(found, key=lambda one: (one.created, one.name), reverse=True)


def read_found(root: Path, name: str) -> Found:
    """Return one artifact or checkpoint by its name.

    Raises:
        DataError: If there is no such thing inside the folder.
    """
    folder = find_inside(root, name)
    if not _is_something(folder):
        raise DataError(
            f"{name!r:.200} is no artifact",
            code="data.not-an-artifact",
            expected="the folder of a finished job, or a checkpoint",
            next="open the list of what lies there",
        )
    return _look_at(root, folder)


def _walk(root: Path) -> Iterator[Path]:
    count = 0
    for place, folders, files in os.walk(root):
        folder = Path(place)
        depth = len(folder.relative_to(root).parts)
        is_artifact = ARTIFACT_FILE in files
        folders[:] = sorted(
            one
            for one in folders
            if depth < _DEPTH and not one.startswith(".") and one not in _NOT_WALKED
        )
        if is_artifact or _is_checkpoint(files):
            count += 1
            yield folder
        if count >= _MOST:
            return


def _is_checkpoint(files: list[str]) -> bool:
    has_weights = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in files)
    return "config.json" in files and has_weights


def _is_something(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return (folder / ARTIFACT_FILE).is_file() or _is_checkpoint(
        [one.name for one in folder.iterdir()]
    )


def _look_at(root: Path, folder: Path) -> Found:
    name = folder.relative_to(root).as_posix()
    if not (folder / ARTIFACT_FILE).is_file():
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        return Found(name, "checkpoint", size_bytes=size, recipe="made elsewhere")
    try:
        artifact = read_artifact(folder)
    except DataError as error:
        return Found(name, "broken", details={"problem": error.problems[0].what})
    kind, license = _origin_of(artifact)
    return Found(
        name,
        artifact.kind,
        artifact.digest,
        artifact.created,
        kind,
        license,
        sum(entry.size_bytes for entry in (*artifact.files, *artifact.timed_files)),
        artifact.kind == "report" and bool(artifact.details.get("answer")),
        _kind_of_recipe(folder),
        dict(artifact.details),
    )


def _origin_of(artifact: Artifact) -> tuple[str, str]:
    origin = artifact.origin
    kind, license = origin.get("kind"), origin.get("license")
    return kind if isinstance(kind, str) else "", license if isinstance(license, str) else ""


def _kind_of_recipe(folder: Path) -> str:
    """Return the kind that the resolved recipe names, read from its first lines."""
    try:
        with (folder / "recipe.yaml").open(encoding="utf-8") as file:
            for line, _ in zip(file, range(8), strict=False):
                key, _, value = line.partition(":")
                if key == "kind":
                    return value.strip()
    except (OSError, ValueError):
        pass
    return ""


def read_json(path: Path) -> Any:
    """Return what a JSON file of an artifact holds, or None where there is none that is sound."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
