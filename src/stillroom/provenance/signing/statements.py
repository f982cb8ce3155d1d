"""The in-toto statement of a job: SLSA build provenance v1.

External parameters are the recipe; resolved dependencies are the parents, by their digests, and for
an index each document; subjects are the output files and artifact.json. Source: slsa.dev, build
provenance v1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.provenance.artifact import ARTIFACT_FILE, Artifact, Parent, read_artifact
from stillroom.provenance.digests import canonical_json, digest_bytes
from stillroom.provenance.signing.dsse import make_statement
from stillroom.provenance.sources import (
    has_passages,
    has_path,
    is_reference,
    iter_documents,
    resolve_parent,
)

__all__ = [
    "BUILD_TYPE",
    "PROVENANCE_TYPE",
    "compare_statements",
    "make_provenance_statement",
]

PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:stillroom:job:v1"


def make_provenance_statement(
    folder: Path, artifact: Artifact, manifest: bytes, recipe: str
) -> dict[str, Any]:
    """Return the statement of the job that wrote a folder.

    Args:
        folder: The job's folder; its documents are read if it is an index.
        artifact: The job's artifact.
        manifest: The bytes of artifact.json.
        recipe: The text of recipe.yaml, empty if there is none.
    """
    entries = (*artifact.files, *artifact.timed_files)
    subject = [{"name": ARTIFACT_FILE, "digest": {"sha256": digest_bytes(manifest)}}]
    subject += [{"name": entry.path, "digest": _digests(entry.digest)} for entry in entries]
    dependencies = [_describe_parent(folder, parent) for parent in artifact.parents]
    if has_passages(folder):
        dependencies += _list_documents(folder)
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"recipe": recipe, "recipeDigest": artifact.recipe_digest},
            "internalParameters": {"seed": artifact.seed},
            "resolvedDependencies": dependencies,
        },
        "runDetails": {
            "builder": {"id": "urn:stillroom:builder", "version": dict(artifact.versions)},
            "metadata": {"invocationId": artifact.claim, "finishedOn": artifact.created},
        },
    }
    return make_statement(subject, PROVENANCE_TYPE, predicate)


def compare_statements(signed: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between a signed statement and that of the folder as it is.

    Each difference completes a sentence about the signed statement.
    """
    differences = []
    subjects = _by_name(signed.get("subject", ())), _by_name(now["subject"])
    for name in sorted(set(subjects[0]) | set(subjects[1])):
        if subjects[0].get(name) != subjects[1].get(name):
            state = "another" if name in subjects[0] and name in subjects[1] else "no"
            side = "names" if name in subjects[1] else "has"
            differences.append(f"{side} {state} {name}")
    old, new = (
        statement.get("predicate", {}).get("buildDefinition", {}) for statement in (signed, now)
    )
    differences += [
        f"names other {field}"
        for field in ("externalParameters", "internalParameters")
        if canonical_json(old.get(field)) != canonical_json(new[field])
    ]
    before, after = (
        {_identify_dependency(row) for row in definition.get("resolvedDependencies") or ()}
        for definition in (old, new)
    )
    if changed := len(before ^ after):
        differences.append(f"names other inputs ({changed} differ)")
    else:
        differences += _compare_origins(
            old.get("resolvedDependencies") or (), new["resolvedDependencies"]
        )
    return differences


def _compare_origins(signed: Any, now: Any) -> Iterator[str]:
    """Yield the inputs whose origin or license was signed as another than it is.

    One whose artifact.json is not at hand has neither now.
    """
    stated = {_identify_dependency(row): row.get("annotations") or {} for row in signed}
    for row in now:
        notes, before = row.get("annotations") or {}, stated[_identify_dependency(row)]
        for name in ("origin", "license"):
            if notes.get(name) and notes[name] != before.get(name):
                told = f"{before.get(name)!r:.60}, not {notes[name]!r:.60}"
                yield f"states another {name} of {row.get('name')}: {told}"


def _identify_dependency(row: Mapping[str, Any]) -> str:
    """Return what tells one dependency from another: all but its other annotations."""
    claim = (row.get("annotations") or {}).get("claim")
    return canonical_json([row.get("name"), row.get("uri"), row.get("digest"), claim])


def _describe_parent(folder: Path, parent: Parent) -> dict[str, Any]:
    described: dict[str, Any] = {"name": parent.role}
    if is_reference(parent.path):
        described["uri"] = parent.path
    if parent.digest:
        described["digest"] = _digests(parent.digest)
    notes = {"kind": parent.kind, "claim": parent.claim, **_read_origin(folder, parent)}
    return described | {"annotations": {key: value for key, value in notes.items() if value}}


def _read_origin(folder: Path, parent: Parent) -> dict[str, Any]:
    """Return origin and license of a parent whose artifact.json is at hand."""
    if not has_path(parent) or is_reference(parent.path):
        return {}
    try:
        origin = read_artifact(resolve_parent(folder, parent)).origin
    except DataError:
        return {}
    counts = {name: value for name, value in origin.items() if isinstance(value, int)}
    return {"origin": origin.get("kind") or counts, "license": origin.get("license")}


def _list_documents(folder: Path) -> list[dict[str, Any]]:
    """Return an index's documents as dependencies, with origin and license.

    The documents of an index with tenants are not named: a statement has no tenant. The index's
    digest covers them.
    """
    try:
        documents = list(iter_documents(folder))
    except DataError as error:
        if error.code != "data.restricted":
            raise
        return []
    rows = []
    for row in documents:
        origin = row.get("origin") or {}
        rows.append(
            {
                "name": f"document:{row.get('path', '')}",
                "digest": _digests(str(row.get("digest", ""))),
                "annotations": {
                    "origin": origin.get("kind", "unknown"),
                    "license": origin.get("license") or "unknown",
                },
            }
        )
    return sorted(rows, key=lambda row: str(row["name"]))


def _digests(digest: str) -> dict[str, str]:
    """Return a digest under the name of its algorithm, as in-toto's digest sets."""
    name, _, value = digest.rpartition(":")
    known = name or ("sha256" if len(digest) == 64 else "stillroom")
    return {known: value}


def _by_name(rows: Any) -> dict[str, str]:
    return {str(row.get("name")): canonical_json(row.get("digest")) for row in rows}
