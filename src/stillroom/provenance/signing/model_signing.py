"""OpenSSF model signing 1.0: one signature over every file of a folder, in ``model.sig``.

A sigstore bundle (v0.3) holds a DSSE envelope of an in-toto statement, whose predicate lists the
folder's files with their SHA-256. Made and verified offline, with a bare key or certificates.
Source: ossf/model-signing-spec, spec/v1.0.md.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from stillroom.errors import IntegrityError
from stillroom.provenance.digests import digest_bytes, digest_file, parse_json, walk_folder
from stillroom.provenance.signing.dsse import (
    IN_TOTO_PAYLOAD,
    STATEMENT_TYPE,
    decode_base64,
    list_unknown,
    make_statement,
    open_envelope,
    read_regular,
    sign_statement,
)
from stillroom.provenance.signing.keys import PublicKey, SigningKey, certificate_key

__all__ = [
    "SIGNATURE_FILE",
    "UNSIGNED_PATHS",
    "SignedFolder",
    "build_bundle",
    "compare_resources",
    "list_resources",
    "open_bundle",
    "parse_bundle",
    "read_bundle",
    "require_regular_files",
]

SIGNATURE_FILE = "model.sig"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_MEDIA_TYPES = {_MEDIA_TYPE, "application/vnd.dev.sigstore.bundle+json;version=0.3"}
UNSIGNED_PATHS = (".git", ".gitattributes", ".github", ".gitignore")
"""Paths at the top of a folder that section 6.2 leaves out of every signature."""
_UNREAD = ("tlogEntries", "timestampVerificationData")
_HASHES = {"sha256", "blake2b", "blake3"}


@dataclass(frozen=True, slots=True)
class SignedFolder:
    """What a bundle states.

    ``resources`` gives each file's digest, or each shard's under ``PATH:BEGIN:END``; ``hashed`` is
    their algorithm; ``ignored`` are paths outside the signature; ``shard_size`` is the bytes of a
    shard, 0 for whole files; ``certificates`` is the signer's chain in DER, its own first.
    ``beside`` is what the bundle holds that its signature does not cover, each the end of a
    sentence; it is known once the signature was verified.
    """

    resources: Mapping[str, str]
    hashed: str
    ignored: tuple[str, ...]
    shard_size: int
    certificates: tuple[bytes, ...]
    beside: tuple[str, ...] = ()

    @property
    def files(self) -> frozenset[str]:
        """Paths of the files that are signed, whole or in shards."""
        return frozenset(map(self.find_file, self.resources))

    def find_file(self, resource: str) -> str:
        """Return the path of the file that a resource is, or is a shard of."""
        return resource.rsplit(":", 2)[0] if self.shard_size else resource


def list_resources(
    folder: Path, ignored: Collection[str] = (), written: Mapping[str, bytes] | None = None
) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, sorted by its path.

    A symbolic link is refused; ``written`` are contents by path of files that are about to be
    written.

    Raises:
        IntegrityError: If a symbolic link lies among the files.
    """
    digests = {name: digest_bytes(data) for name, data in (written or {}).items()}
    for path in sorted(walk_folder(folder)):
        name = path.relative_to(folder).as_posix()
        if _is_ignored(name, (*UNSIGNED_PATHS, *ignored)) or name in digests:
            continue
        _require_regular(path, folder)
        digests[name] = digest_file(path)
    return dict(sorted(digests.items()))


def require_regular_files(folder: Path, names: Collection[str] = ()) -> None:
    """Refuse links, devices and pipes below a folder, or at some of its paths, before any is used.

    Raises:
        IntegrityError: If there is one.
    """
    for path in map(folder.joinpath, names) if names else walk_folder(folder):
        if os.path.lexists(path):
            _require_regular(path, folder)


def _require_regular(path: Path, folder: Path) -> None:
    if path.is_symlink() or not path.is_file():
        raise IntegrityError(
            f"{path.relative_to(folder).as_posix()} is "
            f"{'a symbolic link' if path.is_symlink() else 'not a regular file'}",
            code="integrity.link",
            where=str(folder),
            expected="regular files only",
            next="replace it by a file, or leave it out",
        )


def build_bundle(
    name: str, resources: Mapping[str, str], ignored: Sequence[str], signer: SigningKey
) -> dict[str, Any]:
    """Return the bundle that signs a folder's files.

    ``ignored`` are the paths that were left out of the resources. The certificates of a signer
    stand in the bundle, else the key's id.
    """
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in resources.values()))
    statement = make_statement(
        [{"name": name, "digest": {"sha256": root.hexdigest()}}],
        _PREDICATE_TYPE,
        {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": sorted({*UNSIGNED_PATHS, *ignored}),
            },
            "resources": [
                {"name": path, "algorithm": "sha256", "digest": digest}
                for path, digest in resources.items()
            ],
        },
    )
    material: dict[str, Any] = {"publicKey": {"hint": signer.key_id}}
    if signer.certificates:
        chain = [{"rawBytes": base64.b64encode(one).decode()} for one in signer.certificates]
        material = {"x509CertificateChain": {"certificates": chain}}
    envelope = sign_statement(statement, signer)
    envelope["signatures"][0]["keyid"] = ""  # the verification material names the key
    return {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {**material, "tlogEntries": []},
        "dsseEnvelope": envelope,
    }


def read_bundle(path: Path) -> dict[str, Any]:
    """Read a bundle's file.

    Raises:
        IntegrityError: If it is no regular file with a JSON object.
    """
    try:
        bundle = parse_json(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise _bundle_error(path, f"cannot be read: {error}") from error
    if not isinstance(bundle, dict):
        raise _bundle_error(path, "is not a JSON object")
    return bundle


def parse_bundle(bundle: Mapping[str, Any], where: Path) -> SignedFolder:
    """Return what a bundle states; its signature is not verified.

    Raises:
        IntegrityError: If it is not as sections 4 and 5 of the specification demand.
    """
    try:
        if bundle["mediaType"] not in _MEDIA_TYPES:
            raise ValueError(f"its media type is {bundle['mediaType']!r}")
        certificates = _read_certificates(bundle["verificationMaterial"])
        envelope = bundle["dsseEnvelope"]
        if envelope["payloadType"] != IN_TOTO_PAYLOAD or not envelope["signatures"]:
            raise ValueError("its envelope holds no signed statement")
        statement = parse_json(decode_base64(envelope["payload"]))
        stated = (statement["_type"], statement["predicateType"])
        if stated != (STATEMENT_TYPE, _PREDICATE_TYPE):
            raise ValueError(f"its types are {stated}")
        return _parse_statement(statement, certificates)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bundle_error(where, f"is not a signature of a model: {error}") from error


def _parse_statement(statement: Mapping[str, Any], certificates: tuple[bytes, ...]) -> SignedFolder:
    predicate = statement["predicate"]
    serialization = predicate["serialization"]
    resources = {str(one["name"]): str(one["digest"]) for one in predicate["resources"]}
    if not resources or len(resources) != len(predicate["resources"]):
        raise ValueError("it lists no files, or one twice")
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in resources.values()))
    (subject,) = statement["subject"]
    if subject["digest"]["sha256"] != root.hexdigest():
        raise ValueError("its files do not give its digest")
    method, hashed = serialization["method"], serialization["hash_type"]
    if method not in {"files", "shards"} or hashed not in _HASHES:
        raise ValueError(f"its files are hashed by {method!r} with {hashed!r}")
    if any(one["algorithm"] != hashed for one in predicate["resources"]):
        raise ValueError("its files are hashed by several algorithms")
    if serialization["allow_symlinks"]:
        raise ValueError("symbolic links were followed, which is not supported")
    ignored = tuple(map(str, serialization.get("ignore_paths") or ()))
    shard_size = int(serialization["shard_size"]) if method == "shards" else 0
    return SignedFolder(resources, hashed, (*UNSIGNED_PATHS, *ignored), shard_size, certificates)


def open_bundle(
    bundle: Mapping[str, Any], keys: Sequence[PublicKey], where: Path
) -> tuple[SignedFolder, PublicKey]:
    """Verify a bundle's signature; return what it states, and the key that signed it.

    ``keys`` may have signed; with a certificate in the bundle, its own is used.

    Raises:
        IntegrityError: If it states nothing, none of the keys signed it, or it was signed without
            a key (sigstore), whose transparency log is not read.
    """
    signed = parse_bundle(bundle, where)
    if "certificate" in bundle["verificationMaterial"]:
        raise _bundle_error(
            where,
            "is keyless (sigstore): who signed is known to a transparency log, which is not read; "
            "'model_signing verify sigstore' reads it",
        )
    chain = signed.certificates
    tried = [certificate_key(chain[0], str(where))] if chain else list(keys)
    opened = open_envelope(bundle["dsseEnvelope"], tried, str(where))
    beside = (*opened.beside, *_list_beside(bundle, opened.key_id))
    key = next(one for one in tried if one.key_id == opened.key_id)
    return replace(signed, beside=beside), key


def _list_beside(bundle: Mapping[str, Any], key_id: str) -> Iterator[str]:
    """Yield what stands in a bundle beside its envelope and means something else than the key."""
    material = bundle["verificationMaterial"]
    yield from list_unknown(bundle, ("mediaType", "verificationMaterial", "dsseEnvelope"))
    yield from list_unknown(material, ("publicKey", "x509CertificateChain", *_UNREAD))
    if "publicKey" in material:
        yield from list_unknown(material["publicKey"], ("hint", "rawBytes"))
        hint = material["publicKey"].get("hint") or key_id
        if hint != key_id:
            yield f"names key {hint!r:.80}, which did not sign it"
    for part in _UNREAD:
        if material.get(part):
            yield f"holds {part}, which is not read"


def compare_resources(folder: Path, signed: SignedFolder) -> Iterator[tuple[str, str]]:
    """Yield each path that is not as signed, with ``changed``, ``missing`` or ``extra``."""
    present = {path.relative_to(folder).as_posix(): path for path in sorted(walk_folder(folder))}
    ignored = (SIGNATURE_FILE, *signed.ignored)
    files: dict[str, dict[str, str]] = {}
    for name, digest in signed.resources.items():
        files.setdefault(signed.find_file(name), {})[name] = digest
    for file, digests in files.items():
        path = present.get(file)
        if path is None:
            yield file, "missing"
        elif (
            path.is_symlink() or not path.is_file() or dict(_digest(path, file, signed)) != digests
        ):
            yield file, "changed"
    for name, path in present.items():
        is_plain = path.is_file() and not path.is_symlink()
        is_empty = signed.shard_size and is_plain and not path.stat().st_size
        if name not in files and not is_empty and not _is_ignored(name, ignored):
            yield name, "extra"


def _digest(path: Path, name: str, signed: SignedFolder) -> Iterator[tuple[str, str]]:
    """Yield a file's digest by its name, or each shard's (section 6.3)."""
    if signed.hashed == "sha256" and not signed.shard_size:
        yield name, digest_file(path)
        return
    size, step = path.stat().st_size, signed.shard_size or max(path.stat().st_size, 1)
    with path.open("rb") as file:
        for begin in range(0, max(size, 1), step):
            hasher = _open_hasher(signed.hashed)
            end = min(begin + step, size)
            left = end - begin
            while left > 0 and (block := file.read(min(left, 2**20))):
                hasher.update(block)
                left -= len(block)
            shard = f"{name}:{begin}:{end}" if signed.shard_size else name
            yield shard, str(hasher.hexdigest())


def _open_hasher(name: str) -> Any:
    if name == "blake3":
        from blake3 import blake3

        return blake3()
    return hashlib.new(name)


def _is_ignored(name: str, ignored: Collection[str]) -> bool:
    path = PurePosixPath(name)
    return any(str(one) in ignored for one in (path, *path.parents))


def _read_certificates(material: Mapping[str, Any]) -> tuple[bytes, ...]:
    """Return the certificates of a bundle's verification material; none for a bare key."""
    if "publicKey" in material:
        if not {"hint", "rawBytes"} & dict(material["publicKey"]).keys():
            raise ValueError("it names no key")
        return ()
    if "certificate" in material:
        if not material["tlogEntries"]:
            raise ValueError("it names no entry of a transparency log")
        return (base64.b64decode(material["certificate"]["rawBytes"], validate=True),)
    rows = material["x509CertificateChain"]["certificates"]
    return tuple(base64.b64decode(row["rawBytes"], validate=True) for row in rows)


def _bundle_error(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path.name} {what}",
        code="integrity.signature",
        where=str(path),
        expected="a signature in the format of OpenSSF model signing 1.0",
        next="ask the signer to sign again",
    )
