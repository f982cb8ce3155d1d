"""Writing of artifact.json, signed where a key is configured."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from stillroom.jobs.files import atomic_write
from stillroom.provenance.artifact import ARTIFACT_FILE, Artifact
from stillroom.provenance.signing import find_configured_key, sign_artifact

__all__ = ["sign_if_configured", "write_manifest"]


def write_manifest(
    folder: Path,
    artifact: Artifact,
    *,
    name: str = "",
    but: Collection[str] = (),
    sign: bool = True,
) -> None:
    """Write a folder's artifact.json; with a configured key its signature comes first.

    Args:
        folder: The folder, with all other files in place.
        artifact: What artifact.json states.
        name: The folder's final name, if it is still a working folder.
        but: Files and folders of a working folder that will not be published.
        sign: Whether a configured key signs.

    Raises:
        DataError: If the configured key cannot be read.
        ResourceError: If the disk is full.
    """
    text = json.dumps(artifact.to_json(), ensure_ascii=False, indent=1)
    signer = find_configured_key() if sign else None
    if signer is not None:
        sign_artifact(folder, signer, artifact=artifact, manifest=text.encode(), name=name, but=but)
    with atomic_write(folder / ARTIFACT_FILE) as file:
        file.write(text)


def sign_if_configured(folder: Path) -> None:
    """Sign a finished folder if a key is configured.

    Raises:
        DataError: If the configured key cannot be read.
    """
    signer = find_configured_key()
    if signer is not None:
        sign_artifact(folder, signer)
