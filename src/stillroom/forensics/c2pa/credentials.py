"""C2PA content credentials of media files: integrity, trust, and issuer, as types and as verified.

Integrity: whether the bytes are those that were signed. Trust: whether the signer's chain leads to
a trust list, and to which. Issuer: the name in the certificate, which is a claim unless trusted. A
file without credentials has no provenance, which does not show whether it is real. Nothing is
fetched: remote manifests, OCSP and timestamps are off by default. The c2pa library verifies the
claim signature (COSE_Sign1, ``x5chain``) and the hard binding (``c2pa.hash.data``).
``signer`` signs. ``records.text_credentials.reader`` verifies text files.

Source: C2PA Technical Specification 2.2, sections 14, 15 (trust, validation).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

from stillroom.errors import DataError
from stillroom.forensics.extras import require_packages
from stillroom.forensics.media.file_types import MIME_TYPES, detect_file_type
from stillroom.jobs import escape_line
from stillroom.objects.disk import require_file
from stillroom.provenance.digests import load_json

if TYPE_CHECKING:
    import c2pa

__all__ = [
    "Credentials",
    "Integrity",
    "TrustList",
    "detect_mime_type",
    "explain_mismatch",
    "open_context",
    "read_credentials",
    "verify_file",
]

Integrity = Literal["intact", "broken", "none", "unreadable"]
TrustLabel = Literal["official", "interim", "user", "lab"]
_LABELS = get_args(TrustLabel)
_LISTS = {"lab": "user list, as this lab's own authority"}
_CREDENTIAL = "signingCredential."
_UNTRUSTED = "signingCredential.untrusted"
_NO_MANIFEST = ("no JUMBF data found", "ManifestNotFound", "ProvenanceMissing")
_REMOTE_MANIFEST = ("RemoteManifest", "remote manifest")


@dataclass(frozen=True, slots=True)
class TrustList:
    """Certificates of trusted authorities (trust anchors), and the label of their list.

    ``keys`` are public keys in PEM, which sign texts without an authority.
    """

    label: TrustLabel
    anchors: str
    keys: str = ""

    @classmethod
    def read(cls, label: TrustLabel, path: Path) -> TrustList:
        """Read a PEM file.

        Raises:
            DataError: If the file is missing or has neither certificates nor public keys.
        """
        try:
            text = require_file(path).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            text = ""
        if "BEGIN CERTIFICATE" not in text:
            if "BEGIN PUBLIC KEY" in text:
                return cls(label, "", text)
            raise DataError(
                f"{path} has no certificate",
                code="forensics.trust-list",
                where=str(path),
                expected="a PEM file with certificates of authorities",
                next="pass the ca.pem of provenance init-ca, or a published trust list",
            )
        return cls(label, text, text)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Claims of a file about its origin, and their validation.

    ``trust`` is the label of the list that trusts the signer, ``untrusted``, or empty without
    credentials. ``codes`` are the validation failures of the active manifest, ``ingredient_codes``
    those of its ingredients. ``source_types`` are the digital source types of its actions,
    ``parent_source_types`` those of the files that it was made from, as their own signers state
    them. ``manifests`` is the manifest store as returned by the library.
    """

    integrity: Integrity
    trust: str = ""
    issuer: str = ""
    signer: str = ""
    codes: tuple[str, ...] = ()
    ingredient_codes: tuple[str, ...] = ()
    source_types: tuple[str, ...] = ()
    parent_source_types: tuple[str, ...] = ()
    soft_bindings: tuple[str, ...] = ()
    note: str = ""
    manifests: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def lines(self) -> list[str]:
        """Format integrity, trust and issuer as lines."""
        if self.integrity == "none":
            return ["no provenance: " + (self.note or "the file carries no content credentials")]
        if self.integrity == "unreadable":
            return [f"provenance unreadable: {self.note}"]
        state = "as signed" if self.integrity == "intact" else "changed since it was signed"
        if self.integrity == "broken" and self.note:
            state = f"refused by today's rules: {self.note}"
        claim = "" if self.is_trusted else " (self-asserted: anyone can write this name)"
        trust = f"on the {self.named_list}" if self.is_trusted else "vouched for by no trusted list"
        lines = [
            f"integrity: {self.integrity}, the file is {state}",
            f"trust: {self.trust}, the signer is {trust}",
            f"issuer: {escape_line(self.issuer) or 'not named'}{claim}",
        ]
        if self.integrity == "intact" and self.note:
            lines.append(f"note: {self.note}")
        if self.codes:
            lines.append(f"failures: {', '.join(self.codes)}")
        if self.ingredient_codes:
            lines.append(f"failures of ingredients: {', '.join(self.ingredient_codes)}")
        for name, types in (
            ("source", self.source_types),
            ("source of what it was made from", self.parent_source_types),
        ):
            if types:
                lines.append(f"{name}: {', '.join(kind.rsplit('/', 1)[-1] for kind in types)}")
        return lines

    @property
    def is_trusted(self) -> bool:
        """Whether a trust list contains the signer's authority."""
        return self.trust in _LABELS

    @property
    def named_list(self) -> str:
        """Name of the list that trusts the signer; the lab's own authority counts as the user's."""
        return _LISTS.get(self.trust, f"{self.trust} list")

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values, with the manifest store."""
        return {
            "integrity": self.integrity,
            "trust": self.trust or None,
            "issuer": self.issuer or None,
            "signer": self.signer or None,
            "codes": list(self.codes),
            "ingredient_codes": list(self.ingredient_codes),
            "source_types": list(self.source_types),
            "parent_source_types": list(self.parent_source_types),
            "soft_bindings": list(self.soft_bindings),
            "note": self.note,
            "manifests": dict(self.manifests),
        }


def detect_mime_type(path: Path) -> str:
    """Return the media type of a file by its first bytes, or by its suffix if it is missing.

    Raises:
        DataError: If the type cannot carry credentials.
    """
    try:
        kind = detect_file_type(path)
        mime = kind.mime if kind is not None else ""
    except OSError:
        mime = ""  # the error is reported where the file is read
    mime = mime or MIME_TYPES.get(path.suffix.lower(), "")
    if not mime:
        ending = f"files ending in {path.suffix or 'nothing'} carry no content credentials"
        raise DataError(
            f"{path.name} is a folder" if path.is_dir() else ending,
            code="forensics.media-type",
            where=str(path),
            expected=f"one of: {' '.join(sorted(MIME_TYPES))}",
            next="name the files of the folder, such as its *.jpg"
            if path.is_dir()
            else "convert the file to one of these types",
        )
    return mime


def verify_file(
    path: Path, trust: Sequence[TrustList] = (), *, remote: bool = False
) -> Credentials:
    """Verify the manifests and claim signatures of a file; see ``read_credentials``.

    Raises:
        DataError: If the file is missing or of a type that cannot carry credentials.
        MissingExtraError: If c2pa is not installed.
    """
    require_packages("c2pa")
    mime = detect_mime_type(path)
    try:
        with require_file(path).open("rb") as file:
            return _read_stream(file, mime, trust, remote=remote)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}",
            code="data.missing",
            where=str(path),
            expected="a media file",
            next="check the path",
        ) from error


def read_credentials(
    data: bytes, mime: str, trust: Sequence[TrustList] = (), *, remote: bool = False
) -> Credentials:
    """Read the manifests of a file, and verify its claim signature and hard binding.

    Args:
        data: The file.
        mime: Its media type.
        trust: Trust lists in order of precedence; the first that trusts the signer gives its label.
        remote: Fetch remote manifests and query OCSP; needs the network.
    """
    return _read_stream(io.BytesIO(data), mime, trust, remote=remote)


def _read_stream(
    file: BinaryIO, mime: str, trust: Sequence[TrustList], *, remote: bool
) -> Credentials:
    """Read and validate the credentials of a stream in parts, in bounded memory."""
    require_packages("c2pa")
    import c2pa

    if mime not in c2pa.Reader.get_supported_mime_types():
        return _read_unbound(file, mime)
    state, store, note = "", {}, ""
    label = "untrusted"
    for trust_list in trust or (TrustList("user", ""),):
        try:
            with (
                open_context(
                    [trust_list.anchors] if trust_list.anchors else [], remote=remote
                ) as context,
                c2pa.Reader(mime, file, context=context) as reader,
            ):
                store = json.loads(reader.json())
                note = explain_mismatch(file, reader, _codes(store))
        except c2pa.C2paError as error:
            return _unreadable(str(error), remote=remote)
        file.seek(0)
        state = str(store.get("validation_state", ""))
        if state == "Trusted":
            label = trust_list.label
            break
    return replace(_read_store(store, state, label), note=note)


def _read_unbound(file: BinaryIO, mime: str) -> Credentials:
    """Read the credentials of a type that the library cannot validate against the file."""
    import c2pa

    data = file.read()
    stored = _read_font_store(data) if mime.startswith("font/") else None
    if stored is None:
        # Credentials in other types are not searched: report "unreadable" rather than "none".
        note = f"credentials in files of the type {mime} are not read by this version of c2pa"
        is_font = mime.startswith("font/")
        return Credentials("none") if is_font else Credentials("unreadable", note=note)
    try:
        with c2pa.Reader("application/c2pa", io.BytesIO(stored)) as reader:
            store = json.loads(reader.json())
    except c2pa.C2paError as error:
        return Credentials("unreadable", note=escape_line(str(error)))
    read = _read_store(store, "", "untrusted")
    note = (
        "whether the font's bytes are those that were signed is not checked here; its credentials "
        f"name {escape_line(read.issuer) or 'nobody'} as their issuer, which anyone can write"
    )
    return replace(read, integrity="unreadable", trust="", codes=(), note=note)


def _codes(store: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the distinct failure codes of the active manifest."""
    failures = store.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
    return tuple(dict.fromkeys(row["code"] for row in failures))


def _read_store(store: Mapping[str, Any], state: str, label: str) -> Credentials:
    active = store.get("manifests", {}).get(store.get("active_manifest", ""), {})
    results = store.get("validation_results", {})
    codes = _codes(store)
    deltas = [
        row["code"]
        for delta in results.get("ingredientDeltas", [])
        for row in delta.get("validationDeltas", {}).get("failure", [])
    ]
    info = active.get("signature_info", {})
    # An expired or refused certificate concerns trust, not the integrity of the bytes.
    refused = [code.rsplit(".", 1)[-1] for code in codes if code.startswith(_CREDENTIAL)]
    of_bytes = [code for code in (*codes, *deltas) if not code.startswith(_CREDENTIAL)]
    is_broken = state == "Invalid" and (bool(of_bytes) or not refused)
    worst = [reason for reason in refused if reason != "untrusted"]
    return Credentials(
        "broken" if is_broken else "intact",
        worst[0] if worst else label,
        str(info.get("issuer") or ""),
        " ".join(str(info.get(key) or "") for key in ("common_name", "cert_serial_number")).strip(),
        tuple(code for code in codes if code != _UNTRUSTED),
        tuple(dict.fromkeys(code for code in deltas if code != _UNTRUSTED)),
        tuple(dict.fromkeys(_source_types(active))),
        tuple(dict.fromkeys(_parent_source_types(active, store.get("manifests", {})))),
        tuple(dict.fromkeys(_soft_bindings(active))),
        manifests=store,
    )


def _unreadable(message: str, *, remote: bool) -> Credentials:
    if any(marker in message for marker in _REMOTE_MANIFEST):
        if remote:
            note = f"the credentials lie elsewhere and could not be fetched: {escape_line(message)}"
            return Credentials("none", note=note)
        note = "the credentials lie elsewhere and were not fetched (--remote fetches them)"
        return Credentials("none", note=note)
    if any(marker in message for marker in _NO_MANIFEST):
        return Credentials("none")
    return Credentials("unreadable", note=escape_line(message.removeprefix("Other: ")))


def _assertions(manifest: Mapping[str, Any], kind: str) -> Iterable[Mapping[str, Any]]:
    for assertion in manifest.get("assertions", []):
        if str(assertion.get("label", "")).startswith(kind) and isinstance(
            assertion.get("data"), dict
        ):
            yield assertion["data"]


def _source_types(manifest: Mapping[str, Any]) -> Iterable[str]:
    for data in _assertions(manifest, "c2pa.actions"):
        for action in data.get("actions", []):
            if action.get("digitalSourceType"):
                yield str(action["digitalSourceType"])


def _parent_source_types(
    manifest: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]]
) -> Iterable[str]:
    """Yield the digital source types of the files that a file was made from, the nearest first.

    An editor that opened a generated image states only that it opened it. A parent that had been
    changed when it was opened no longer states anything; components make no whole.
    """
    unread, chain = dict(manifests), [manifest]
    for child in chain:
        for part in child.get("ingredients", []):
            results = part.get("validation_results", {}).get("activeManifest", {})
            failures = [*results.get("failure", []), *part.get("validation_status", [])]
            is_changed = not all(row["code"].startswith(_CREDENTIAL) for row in failures)
            if part.get("relationship") == "parentOf" and not is_changed:
                parent = unread.pop(part.get("active_manifest", ""), {})
                yield from _source_types(parent)
                chain.append(parent)


def _soft_bindings(manifest: Mapping[str, Any]) -> Iterable[str]:
    for data in _assertions(manifest, "c2pa.soft-binding"):
        for block in data.get("blocks", []):
            yield str(block.get("value", ""))


def open_context(anchors: Sequence[str], *, remote: bool = False) -> c2pa.Context:
    """Return the library's settings for reading and signing: trust anchors, and what is fetched."""
    import c2pa

    return c2pa.Context.from_dict(
        {
            "verify": {"verify_trust": True, "remote_manifest_fetch": remote, "ocsp_fetch": remote},
            "trust": {"trust_anchors": "\n".join(anchors)} if anchors else {},
            "builder": {"thumbnail": {"enabled": False}},
        }
    )


_BLOCK = 1 << 20
_MISMATCH = "assertion.dataHash.mismatch"
_HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}


def explain_mismatch(file: BinaryIO, reader: c2pa.Reader, codes: Sequence[str]) -> str:
    """Explain, not verify, why an unchanged file is refused; empty if it was changed.

    The library verifies the hard binding; here it is hashed only to explain a refusal (C2PA 2.2,
    section 18.5).

    Args:
        file: The file, at any position.
        reader: Reader of the file.
        codes: Its failures; the data hash must be the only one that concerns the bytes.
    """
    if [code for code in codes if not code.startswith("signingCredential.")] != [_MISMATCH]:
        return ""
    try:
        store = load_json(reader.detailed_json())
        active = store["manifests"][store["active_manifest"]]
        data_hash = active["assertion_store"]["c2pa.hash.data"]
        parts = sorted(
            (int(p["start"]), int(p["length"])) for p in data_hash.get("exclusions") or []
        )
        expected = base64.b64decode(data_hash["hash"])
        holds = _hash_parts(file, parts, data_hash, active) == expected
    except (KeyError, TypeError, ValueError):
        return ""
    if not holds or not parts:
        return ""
    excluded = sum(length for _, length in parts)
    size = file.seek(0, os.SEEK_END)
    return (
        f"the signature leaves out {excluded} bytes, more than its own credentials; the other "
        f"{size - excluded} are as they were signed"
    )


def _hash_parts(
    file: BinaryIO,
    parts: Sequence[tuple[int, int]],
    data_hash: Mapping[str, Any],
    active: Mapping[str, Any],
) -> bytes:
    hasher, position = _HASHES[str(data_hash.get("alg") or active["claim"].get("alg"))](), 0
    for start, length in [*parts, (file.seek(0, os.SEEK_END), 0)]:
        file.seek(position)
        while position < start and (block := file.read(min(start - position, _BLOCK))):
            hasher.update(block)
            position += len(block)
        position = start + length
    return hasher.digest()


_HEAD, _ROW = struct.Struct(">4sH"), struct.Struct(">4sIII")
_TABLE = struct.Struct(">HHIHHII")  # version, URI offset and length, reserved, store offset, size
_FIRST_ROW = 12


def _read_font_store(data: bytes) -> bytes | None:
    """Return the manifest store of a font, None without one, empty if truncated or remote.

    It lies in the table ``C2PA`` (C2PA 2.2, A.3.6; OpenType 1.9.1, the table directory).
    """
    if len(data) < _FIRST_ROW:
        return None
    count = _HEAD.unpack_from(data)[1]
    for number in range(count):
        row_offset = _FIRST_ROW + number * _ROW.size
        if row_offset + _ROW.size > len(data):
            return None
        tag, _, table_offset, size = _ROW.unpack_from(data, row_offset)
        if tag == b"C2PA":
            table = data[table_offset : table_offset + size]
            if len(table) < _TABLE.size:
                return b""
            store, length = _TABLE.unpack_from(table)[5:]
            return table[store : store + length]
    return None
