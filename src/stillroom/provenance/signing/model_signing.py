"""OpenSSF model signing 1.0: one signature over every file of a folder, in ``model.sig``.

A sigstore bundle (v0.3) holds a DSSE envelope of an in-toto statement, whose predicate lists the
folder's files with their SHA-256. Made and verified offline, with a bare key or certificates.
Source: ossf/model-signing-spec, spec/v1.0.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stillroom.errors import IntegrityError
from stillroom.provenance.digests import digest_bytes, digest_file
from stillroom.provenance.signing.dsse import (
    IN_TOTO_PAYLOAD,
    STATEMENT_TYPE,
    make_statement,
    open_envelope,
    sign_statement,
)
from stillroom.provenance.signing.keys import PublicKey, SigningKey, certificate_key

__all__ = [
    "PREDICATE_TYPE",
    "SIGNATURE_FILE",
    "SignedFolder",
    "build_bundle",
    "compare_resources",
    "list_resources",
    "open_bundle",
    "read_bundle",
]

SIGNATURE_FILE = "model.sig"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@dataclass(frozen=True, slots=True)
class SignedFolder:
    """What a valid signature states: files with their digests, and the key that signed.

    ``hashed`` names the algorithm of each file's digest; ``ignored`` are paths outside the
    signature; ``method`` is ``files`` or ``shards``, ``shard_size`` the bytes of a shard.
    """

    key: PublicKey
    certificates: tuple[bytes, ...]
    resources: Mapping[str, str]
    hashed: Mapping[str, str]
    ignored: tuple[str, ...]
    method: str = "files"
    shard_size: int = 0


def list_resources(
    folder: Path, ignored: Collection[str] = (), written: Mapping[str, bytes] | None = None
) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, sorted by its path.

    Args:
        folder: The folder; a symbolic link in it is refused.
        ignored: Files and folders, as relative paths, that are left out.
        written: Contents by path of files that are about to be written.

    Raises:
        IntegrityError: If a symbolic link lies among the files.
    """
    digests = {name: digest_bytes(data) for name, data in (written or {}).items()}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if _is_ignored(name, ignored) or name in digests:
            continue
        if path.is_symlink():
            raise IntegrityError(
                f"{name} is a symbolic link",
                code="integrity.link",
                where=str(folder),
                expected="regular files only",
                next="replace the link by the file it points to",
            )
        digests[name] = digest_file(path)
    return dict(sorted(digests.items()))


def build_bundle(
    name: str, resources: Mapping[str, str], ignored: Sequence[str], signer: SigningKey
) -> dict[str, Any]:
    """Return the bundle that signs a folder's files.

    Args:
        name: The folder's name.
        resources: Result of ``list_resources``.
        ignored: The paths that were left out.
        signer: The signer; with certificates they stand in the bundle, else the key's id.
    """
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in resources.values()))
    statement = make_statement(
        [{"name": name, "digest": {"sha256": root.hexdigest()}}],
        PREDICATE_TYPE,
        {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(ignored),
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
    return {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {**material, "tlogEntries": []},
        "dsseEnvelope": sign_statement(statement, signer),
    }


def read_bundle(path: Path) -> dict[str, Any]:
    """Read a bundle's file.

    Raises:
        IntegrityError: If it is not one.
    """
    try:
        bundle = json.loads(path.read_bytes())
        material = bundle["verificationMaterial"]
        known = {"publicKey", "x509CertificateChain", "certificate"}
        if not known & set(material) or "dsseEnvelope" not in bundle:
            raise ValueError("neither a key nor a certificate, or no envelope")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bundle_error(path, f"is no sigstore bundle: {error}") from error
    return dict(bundle)


def open_bundle(bundle: Mapping[str, Any], keys: Sequence[PublicKey], where: Path) -> SignedFolder:
    """Verify a bundle's signature and return what it states.

    Args:
        bundle: Result of ``read_bundle``.
        keys: Keys that may have signed; with a certificate in the bundle, its own is used.
        where: The bundle's file, named in errors.

    Raises:
        IntegrityError: If none of the keys signed it, or the statement contradicts itself.
    """
    certificates = _read_certificates(bundle, where)
    tried = [certificate_key(certificates[0], str(where))] if certificates else list(keys)
    opened = open_envelope(bundle["dsseEnvelope"], tried, str(where))
    key = next(one for one in tried if one.key_id == opened.key_id)
    try:
        statement = json.loads(opened.payload)
        predicate = statement["predicate"]
        serialization = predicate["serialization"]
        rows = [(one["name"], one["algorithm"], one["digest"]) for one in predicate["resources"]]
        root = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, _, digest in rows)).hexdigest()
        (subject,) = statement["subject"]
        stated = (statement["_type"], statement["predicateType"], opened.payload_type)
        if stated != (STATEMENT_TYPE, PREDICATE_TYPE, IN_TOTO_PAYLOAD):
            raise ValueError(f"its types are {stated}")
        if subject["digest"]["sha256"] != root:
            raise ValueError("its files do not give its digest")
        if len({name for name, _, _ in rows}) != len(rows):
            raise ValueError("it lists a file twice")
        return SignedFolder(
            key,
            certificates,
            {str(name): str(digest) for name, _, digest in rows},
            {str(name): str(algorithm) for name, algorithm, _ in rows},
            tuple(map(str, serialization.get("ignore_paths", ()))),
            str(serialization["method"]),
            int(serialization.get("shard_size", 0)),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bundle_error(where, f"states nothing that can be compared: {error}") from error


def compare_resources(folder: Path, signed: SignedFolder) -> Iterator[tuple[str, str]]:
    """Yield each path that is not as signed, with ``changed``, ``missing`` or ``extra``."""
    present = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
    own = (SIGNATURE_FILE, *signed.ignored)
    listed = set()
    for name, digest in signed.resources.items():
        file, begin, end = _split_shard(name, signed)
        listed.add(file)
        path = present.get(file)
        if path is None:
            yield file, "missing"
        elif path.is_symlink() or _digest(path, signed.hashed[name], begin, end) != digest:
            yield file, "changed"
    for name in present:
        if name not in listed and not _is_ignored(name, own):
            yield name, "extra"


def _split_shard(name: str, signed: SignedFolder) -> tuple[str, int, int | None]:
    """Return a resource's file and the range of its bytes; None for the end is the file's."""
    if signed.method != "shards":
        return name, 0, None
    file, begin, end = name.rsplit(":", 2)
    return file, int(begin), int(end)


def _digest(path: Path, algorithm: str, begin: int, end: int | None) -> str:
    if algorithm == "sha256" and end is None:
        return digest_file(path)
    if algorithm == "blake3":
        from blake3 import blake3

        hasher: Any = blake3()
    elif algorithm in {"sha256", "blake2b"}:
        hasher = hashlib.new(algorithm)
    else:
        return ""
    with path.open("rb") as file:
        file.seek(begin)
        left = path.stat().st_size - begin if end is None else end - begin
        while left > 0 and (block := file.read(min(left, 2**20))):
            hasher.update(block)
            left -= len(block)
    return str(hasher.hexdigest())


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or path.is_file():
            yield path


def _is_ignored(name: str, ignored: Collection[str]) -> bool:
    path = PurePosixPath(name)
    return any(str(one) in ignored for one in (path, *path.parents))


def _read_certificates(bundle: Mapping[str, Any], where: Path) -> tuple[bytes, ...]:
    material = bundle["verificationMaterial"]
    try:
        rows = material.get("x509CertificateChain", {}).get("certificates", [])
        rows = rows or [material[name] for name in ("certificate",) if name in material]
        return tuple(base64.b64decode(row["rawBytes"], validate=True) for row in rows)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _bundle_error(where, f"holds no certificates: {error!r}") from error


def _bundle_error(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path.name} {what}",
        code="integrity.signature",
        where=str(path),
        expected="a signature in the format of OpenSSF model signing 1.0",
        next="ask the signer to sign again",
    )
