"""Signing of job folders (SLSA provenance), and verification of their signatures.

A signed folder holds ``signer.pub`` (the signer's public key), ``claims.jsonl`` (a statement of its
provenance, an in-toto attestation in a DSSE envelope) and ``model.sig`` (OpenSSF model signing,
over every other file).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import DataError, IntegrityError
from stillroom.objects.disk import atomic_write
from stillroom.provenance.artifact import ARTIFACT_FILE, Artifact, Parent, read_artifact
from stillroom.provenance.digests import canonical_json, digest_bytes, parse_json, walk_folder
from stillroom.provenance.signing.dsse import (
    CLAIMS_FILE,
    append_claim,
    make_statement,
    open_envelope,
    read_claims,
    read_regular,
    sign_statement,
)
from stillroom.provenance.signing.keys import PublicKey, SigningKey, Trust, parse_public_key
from stillroom.provenance.signing.model_signing import (
    SIGNATURE_FILE,
    build_bundle,
    compare_resources,
    list_resources,
    open_bundle,
    read_bundle,
    require_regular_files,
)
from stillroom.provenance.sources import (
    has_passages,
    has_path,
    is_reference,
    iter_documents,
    resolve_parent,
)

__all__ = [
    "LOCK_FILE",
    "PUBLIC_KEY_FILE",
    "UNSIGNED_FILES",
    "WRITER_FILE",
    "SignatureCheck",
    "check_signature",
    "find_signer",
    "sign_artifact",
]

PUBLIC_KEY_FILE = "signer.pub"
LOCK_FILE, WRITER_FILE = ".lock", ".writer"
"""Locks of a job's folder and of an index, which say nothing of either."""
UNSIGNED_FILES = frozenset({SIGNATURE_FILE, CLAIMS_FILE, LOCK_FILE, WRITER_FILE})
"""Files outside the signature of a folder, and of a run that it is a step of."""
SignatureState = Literal["unsigned", "trusted", "other-signer", "unknown-signer", "invalid"]


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """The result of verifying one folder's signature.

    ``state`` is ``trusted`` (valid, by a key that the verifier trusts), ``other-signer`` (valid, by
    another key), ``unknown-signer`` (valid, and the verifier named no key), ``invalid`` or
    ``unsigned``. Each of ``differences`` is a file of the folder, and the end of a sentence about
    it; so is each of ``beside``, which is no difference: what stands in the signature's files that
    it does not cover. ``files`` are the paths that it covers.
    """

    state: SignatureState
    key_id: str = ""
    differences: tuple[tuple[str, str], ...] = ()
    beside: tuple[tuple[str, str], ...] = ()
    files: frozenset[str] = frozenset()


def sign_artifact(
    folder: Path,
    signer: SigningKey,
    *,
    artifact: Artifact | None = None,
    manifest: bytes = b"",
    name: str = "",
    but: Collection[str] = (),
) -> None:
    """Sign a job's folder; an older signature is replaced, older claims are kept.

    A folder from elsewhere, such as a checkpoint, is signed without a statement of what made it.

    Of a working folder, ``artifact`` and ``manifest`` are what artifact.json is about to be,
    ``name`` is the folder's final name, and ``but`` are files and folders that will not be
    published.

    Raises:
        DataError: If its artifact.json cannot be read.
        IntegrityError: If a link, a device or a pipe lies in it; nothing is written then.
    """
    require_regular_files(folder, (PUBLIC_KEY_FILE, SIGNATURE_FILE, ARTIFACT_FILE, "recipe.yaml"))
    written = {ARTIFACT_FILE: manifest} if manifest else {}
    with atomic_write(folder / PUBLIC_KEY_FILE, "wb") as file:
        file.write(signer.public_key.pem)
    if artifact is not None or (folder / ARTIFACT_FILE).exists():
        recorded = artifact if artifact is not None else read_artifact(folder)
        data = manifest or (folder / ARTIFACT_FILE).read_bytes()
        statement = _make_provenance_statement(folder, recorded, data, _read_recipe(folder))
        append_claim(folder, sign_statement(statement, signer))
    # Signatures, claims and locks, here and in the steps of a run.
    found = (path for path in walk_folder(folder) if path.name in UNSIGNED_FILES)
    ignored = sorted(UNSIGNED_FILES | {path.relative_to(folder).as_posix() for path in found})
    resources = list_resources(folder, {*ignored, *but}, written)
    bundle = build_bundle(name or folder.resolve().name, resources, ignored, signer)
    with atomic_write(folder / SIGNATURE_FILE) as file:
        json.dump(bundle, file, separators=(",", ":"))


def check_signature(folder: Path, trust: Trust) -> SignatureCheck:
    """Verify a folder's signature and claims."""
    if not os.path.lexists(folder / SIGNATURE_FILE):
        left = [name for name in (CLAIMS_FILE, PUBLIC_KEY_FILE) if os.path.lexists(folder / name)]
        lost = tuple((name, f"stands without {SIGNATURE_FILE}") for name in left)
        return SignatureCheck("invalid" if lost else "unsigned", differences=lost)
    try:
        own = _read_own_key(folder)
        keys = [*trust.keys, *own]
        bundle = read_bundle(folder / SIGNATURE_FILE)
        signed, key = open_bundle(bundle, keys, folder / SIGNATURE_FILE)
    except (IntegrityError, DataError) as error:
        what = error.problems[0].what.removeprefix(f"{SIGNATURE_FILE} ")
        return SignatureCheck("invalid", differences=((SIGNATURE_FILE, what),))
    words = {
        "changed": "was changed after it was signed",
        "missing": "was signed and is missing",
        "extra": "was added after the signature",
    }
    wrong = []
    try:
        for name, how in compare_resources(folder, signed):
            wrong.append((name, words[how]))
    except OSError as error:
        place = os.path.relpath(os.fsdecode(error.filename or folder), folder)
        wrong.append((place, f"cannot be read: {error.strerror or error}"))
    if any(one.key_id != key.key_id for one in own):
        wrong.append((PUBLIC_KEY_FILE, f"is not the key that signed: {key.key_id}"))
    if (folder / ARTIFACT_FILE).exists():
        wrong += _check_claims(folder, key)
    state: SignatureState = "unknown-signer"
    if wrong:
        state = "invalid"
    elif trust:
        state = "trusted" if trust.covers(key, signed.certificates) else "other-signer"
    beside = [(SIGNATURE_FILE, what) for what in signed.beside]
    beside += _list_beside(folder, key, keys)
    return SignatureCheck(state, key.key_id, tuple(wrong), tuple(beside), signed.files)


def _list_beside(
    folder: Path, key: PublicKey, keys: Collection[PublicKey]
) -> Iterator[tuple[str, str]]:
    """Yield what stands in a folder's claims that the folder's signer did not sign."""
    with suppress(IntegrityError):  # a difference, where the folder has claims to check
        for number, envelope in enumerate(read_claims(folder), start=1):
            place = f"{CLAIMS_FILE}:{number}"
            try:
                opened = open_envelope(envelope, [key, *keys], place)
            except IntegrityError:
                named = ", ".join(str(one.get("keyid", "")) for one in envelope["signatures"])
                yield place, f"is of another signer, which was not checked: key {named!r:.80}"
                continue
            yield from ((place, what) for what in opened.beside)
            if opened.key_id != key.key_id:
                yield place, f"is signed by another key: {opened.key_id}"


def find_signer(folder: Path, trust: Trust) -> PublicKey | None:
    """Return the key that signed a folder's signature file; its files are not compared.

    None if neither signer.pub nor a trusted key did: signer.pub alone proves nothing.
    """
    path = folder / SIGNATURE_FILE
    try:
        return open_bundle(read_bundle(path), [*_read_own_key(folder), *trust.keys], path)[1]
    except (IntegrityError, DataError):
        return None


def _check_claims(folder: Path, key: PublicKey) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the newest statement of what made the folder, and with others of it.

    Statements that name another artifact.json are of an earlier state of the folder.
    """
    try:
        statements = [
            parse_json(open_envelope(envelope, [key], str(folder / CLAIMS_FILE)).payload)
            for envelope in _own_claims(folder, key)
        ]
    except (IntegrityError, ValueError, RecursionError) as error:
        what = error.problems[0].what if isinstance(error, IntegrityError) else str(error)
        yield CLAIMS_FILE, f"cannot be trusted: {what}"
        return
    claims = [
        one
        for one in statements
        if isinstance(one, dict) and one.get("predicateType") == _PROVENANCE_TYPE
    ]
    if not claims:
        yield CLAIMS_FILE, "holds no statement of what made this folder"
        return
    try:
        artifact = read_artifact(folder)
        manifest = (folder / ARTIFACT_FILE).read_bytes()
        now = _make_provenance_statement(folder, artifact, manifest, _read_recipe(folder))
    except (DataError, OSError, AttributeError, TypeError, ValueError) as error:
        yield ARTIFACT_FILE, f"cannot be compared with its claims: {error}".split("\n", 1)[0]
        return
    try:
        present = [one for one in claims[:-1] if _digest_manifest(one) == _digest_manifest(now)]
        differences = {
            difference: None
            for one in (*present, claims[-1])
            for difference in _compare_statements(one, now)
        }
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        yield CLAIMS_FILE, f"holds a statement that cannot be read: {error}"
        return
    for difference in differences:
        yield CLAIMS_FILE, difference


def _digest_manifest(statement: Mapping[str, Any]) -> str | None:
    return _by_name(statement.get("subject", ())).get(ARTIFACT_FILE)


def _own_claims(folder: Path, key: PublicKey) -> list[Mapping[str, Any]]:
    """Return the claims that name the signer's key; others' summaries may stand beside them."""
    return [
        envelope
        for envelope in read_claims(folder)
        if any(one.get("keyid") == key.key_id for one in envelope["signatures"])
    ]


def _read_own_key(folder: Path) -> list[PublicKey]:
    path = folder / PUBLIC_KEY_FILE
    if not os.path.lexists(path):
        return []
    try:
        return [parse_public_key(read_regular(path), path)]
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"was made with a key that cannot be read: {error}",
            code="integrity.signature",
            where=str(path),
            expected="a public key in PEM",
            next="get the file again, or ask the signer to sign again",
        ) from error


def _read_recipe(folder: Path) -> str:
    path = folder / "recipe.yaml"
    return read_regular(path).decode("utf-8") if path.is_file() else ""


_PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
_BUILD_TYPE = "urn:stillroom:job:v1"
_DEPENDENCIES = "resolvedDependencies"
_ORIGIN_NOTES = ("origin", "license")


def _make_provenance_statement(
    folder: Path, artifact: Artifact, manifest: bytes, recipe: str
) -> dict[str, Any]:
    """Return the statement of the job that wrote a folder.

    The documents of an index are read. ``manifest`` is the bytes of artifact.json, ``recipe`` the
    text of recipe.yaml, empty if there is none.
    """
    entries = (*artifact.files, *artifact.timed_files)
    subject = [{"name": ARTIFACT_FILE, "digest": {"sha256": digest_bytes(manifest)}}]
    subject += [{"name": entry.path, "digest": _digests(entry.digest)} for entry in entries]
    dependencies = [_describe_parent(folder, parent) for parent in artifact.parents]
    if has_passages(folder):
        dependencies += _list_documents(folder)
    predicate = {
        "buildDefinition": {
            "buildType": _BUILD_TYPE,
            "externalParameters": {"recipe": recipe, "recipeDigest": artifact.recipe_digest},
            "internalParameters": {"seed": artifact.seed},
            _DEPENDENCIES: dependencies,
        },
        "runDetails": {
            "builder": {"id": "urn:stillroom:builder", "version": dict(artifact.versions)},
            "metadata": {"invocationId": artifact.claim, "finishedOn": artifact.created},
        },
    }
    return make_statement(subject, _PROVENANCE_TYPE, predicate)


def _compare_statements(signed: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
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
    old, new = signed.get("predicate") or {}, now["predicate"]
    for part in ("buildDefinition", "runDetails"):
        stated, current = (dict(predicate.get(part) or {}) for predicate in (old, new))
        fields = sorted((stated.keys() | current.keys()) - {_DEPENDENCIES})
        differences += [
            f"names other {field}"
            for field in fields
            if canonical_json(stated.get(field)) != canonical_json(current.get(field))
        ]
    differences += [f"names other {field}" for field in sorted(old.keys() ^ new.keys())]
    rows, own = (
        (predicate.get("buildDefinition") or {}).get(_DEPENDENCIES) or ()
        for predicate in (old, new)
    )
    before, after = (Counter(map(_identify_dependency, part)) for part in (rows, own))
    if changed := ((before - after) + (after - before)).total():
        differences.append(f"names other inputs ({changed} differ)")
    else:
        differences += _compare_origins(rows, own)
    return differences


def _compare_origins(signed: Any, now: Any) -> Iterator[str]:
    """Yield the inputs whose origin or license was signed as another than it is.

    One whose artifact.json is not at hand has neither now; one that was not at hand when the
    statement was signed has neither in it.
    """
    stated: dict[str, list[Mapping[str, Any]]] = {}
    for row in signed:
        stated.setdefault(_identify_dependency(row), []).append(row.get("annotations") or {})
    for row in now:
        notes, before = row.get("annotations") or {}, stated[_identify_dependency(row)]
        is_document = str(row.get("name")).startswith("document:")
        if not is_document and not all(one.keys() & {*_ORIGIN_NOTES} for one in before):
            continue
        for name in _ORIGIN_NOTES:
            earlier = [one.get(name) for one in before]
            if notes.get(name) and notes[name] not in earlier:
                difference = f"{earlier[0]!r:.60}, not {notes[name]!r:.60}"
                yield f"states another {name} of {row.get('name')}: {difference}"


def _identify_dependency(row: Mapping[str, Any]) -> str:
    """Return what tells one dependency from another: all but its origin and license."""
    notes = (row.get("annotations") or {}).items()
    others = {name: value for name, value in notes if name not in {"origin", "license"}}
    return canonical_json({**row, "annotations": others})


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
