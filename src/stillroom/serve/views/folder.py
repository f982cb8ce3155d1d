"""Artifacts and checkpoints of the served folder, and safe lookup of a name in it.

Names are paths relative to the folder, with forward slashes; ``.`` is the folder itself. Hidden
folders and an artifact's own ``output`` are not walked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.provenance import ARTIFACT_FILE, Artifact, read_artifact
from stillroom.serve.workspace import TenantRoot

__all__ = [
    "FolderArtifact",
    "is_artifact",
    "list_askable",
    "list_folder_artifacts",
    "read_folder_artifact",
    "read_json",
    "read_kind",
    "resolve_name",
    "to_name",
]

_MAX_ARTIFACTS = 2_000
_MAX_DEPTH = 6
_SKIPPED_FOLDERS = frozenset({"output", "node_modules", "__pycache__"})


@dataclass(frozen=True, slots=True)
class FolderArtifact:
    """One artifact or checkpoint of the folder.

    ``kind`` is an artifact's kind; ``is_run`` marks runs, which answer questions; ``origin`` is
    ``human``, ``synthetic``, ``unknown`` or empty if not recorded.
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
        """Last part of its name."""
        return self.name.rpartition("/")[2]


def is_artifact(folder: Path) -> bool:
    """Return whether a folder is an artifact."""
    return (folder / ARTIFACT_FILE).is_file()


def read_kind(folder: Path) -> str:
    """Return an artifact's kind (``broken`` if unreadable), ``checkpoint``, or ``folder``."""
    if is_artifact(folder):
        try:
            return read_artifact(folder).kind
        except (DataError, OSError):
            return "broken"
    return "checkpoint" if _is_artifact_or_checkpoint(folder) else "folder"


def resolve_name(root: Path, name: str) -> Path:
    """Return the path of a name inside the folder.

    Raises:
        DataError: If it resolves to a path outside, is hidden, or does not exist.
    """
    return TenantRoot(root).find(name)


def to_name(root: Path, path: Path | str) -> str:
    """Return the name of a path inside the folder; empty for a path outside."""
    real, top = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if not real.is_relative_to(top):
        return ""
    inner = real.relative_to(top)
    is_hidden = any(part.startswith(".") for part in inner.parts)
    return "" if is_hidden else inner.as_posix()


def list_folder_artifacts(root: Path) -> list[FolderArtifact]:
    """Return the artifacts of the folder, newest first; unreadable ones are of kind ``broken``."""
    artifacts = [_describe_artifact(root, folder) for folder in _walk_artifacts(root)]
    return sorted(artifacts, key=lambda artifact: (artifact.created, artifact.name), reverse=True)


def list_askable(artifacts: Sequence[FolderArtifact]) -> list[FolderArtifact]:
    """Return the runs that answer, and the indexes that are not a step of one of them."""
    runs = [artifact.name for artifact in artifacts if artifact.is_run]
    steps = tuple("" if name == "." else f"{name}/" for name in runs)
    return [
        artifact
        for artifact in artifacts
        if artifact.is_run or (artifact.kind == "index" and not artifact.name.startswith(steps))
    ]


def read_folder_artifact(root: Path, name: str) -> FolderArtifact:
    """Return one artifact or checkpoint by its name.

    Raises:
        DataError: If there is none of that name inside the folder.
    """
    folder = resolve_name(root, name)
    if not _is_artifact_or_checkpoint(folder):
        raise DataError(
            f"{name!r:.200} is not an artifact",
            code="data.not-an-artifact",
            expected="the folder of a finished job, or a checkpoint",
            next="choose one from the list of the folder",
        )
    return _describe_artifact(root, folder)


def _walk_artifacts(root: Path) -> Iterator[Path]:
    count = 0
    for folder_path, folders, files in os.walk(root):
        folder = Path(folder_path)
        depth = len(folder.relative_to(root).parts)
        is_artifact = ARTIFACT_FILE in files
        folders[:] = sorted(
            name
            for name in folders
            if depth < _MAX_DEPTH and not name.startswith(".") and name not in _SKIPPED_FOLDERS
        )
        if is_artifact or _is_checkpoint(files):
            count += 1
            yield folder
        if count >= _MAX_ARTIFACTS:
            return


def _is_checkpoint(files: list[str]) -> bool:
    has_weights = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in files)
    return "config.json" in files and has_weights


def _is_artifact_or_checkpoint(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return (folder / ARTIFACT_FILE).is_file() or _is_checkpoint(
        [file.name for file in folder.iterdir()]
    )


def _describe_artifact(root: Path, folder: Path) -> FolderArtifact:
    name = folder.relative_to(root).as_posix()
    if not (folder / ARTIFACT_FILE).is_file():
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        return FolderArtifact(name, "checkpoint", size_bytes=size, recipe="produced elsewhere")
    try:
        artifact = read_artifact(folder)
    except (DataError, OSError) as error:
        what = error.problems[0].what if isinstance(error, DataError) else error.strerror
        return FolderArtifact(name, "broken", details={"problem": what})
    kind, license = _read_origin(artifact)
    return FolderArtifact(
        name,
        artifact.kind,
        artifact.digest,
        artifact.created,
        kind,
        license,
        sum(entry.size_bytes for entry in (*artifact.files, *artifact.timed_files)),
        artifact.kind == "report" and bool(artifact.details.get("answer")),
        _read_recipe_kind(folder),
        dict(artifact.details),
    )


def _read_origin(artifact: Artifact) -> tuple[str, str]:
    origin = artifact.origin
    kind, license = origin.get("kind"), origin.get("license")
    return kind if isinstance(kind, str) else "", license if isinstance(license, str) else ""


def _read_recipe_kind(folder: Path) -> str:
    """Return the kind in the resolved recipe, read from its first lines."""
    path = folder / "recipe.yaml"
    if not path.is_file():  # opening a pipe would wait for its writer
        return ""
    with suppress(OSError, ValueError), path.open(encoding="utf-8") as file:
        for line, _ in zip(file, range(8), strict=False):
            key, _, value = line.partition(":")
            if key == "kind":
                return value.strip()
    return ""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of an artifact, or None if missing or invalid."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
