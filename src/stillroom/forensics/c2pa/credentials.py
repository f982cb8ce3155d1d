"""C2PA content credentials: signing, and validation of integrity, trust, and issuer.

Integrity (are the bytes those that were signed), trust (does the signer's chain lead to a list
that the user trusts, and to which), and issuer (who the certificate says it is: a claim, unless
trusted). A file without credentials has no provenance; that says nothing about whether it is real.
Nothing is fetched: remote manifests, OCSP and timestamps are off unless asked for.

Source: C2PA Technical Specification 2.2, sections 14 and 15 (trust, validation).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

from stillroom.errors import DataError
from stillroom.forensics.c2pa.hard_binding import explain_mismatch, read_font_store
from stillroom.forensics.extras import require_packages
from stillroom.forensics.media.file_types import MIME_TYPES, detect_file_type
from stillroom.jobs import escape_line

if TYPE_CHECKING:
    import c2pa

__all__ = [
    "CA_FILE",
    "CHAIN_FILE",
    "KEY_FILE",
    "Credentials",
    "Signer",
    "TrustList",
    "detect_mime_type",
    "read_credentials",
    "sign_bytes",
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
    """Certificates of authorities that are trusted, and whose list it is."""

    label: TrustLabel
    anchors: str

    @classmethod
    def read(cls, label: TrustLabel, path: Path) -> TrustList:
        """Read a PEM file.

        Raises:
            DataError: If the file is missing or holds no certificate.
        """
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            text = ""
        if "BEGIN CERTIFICATE" not in text:
            raise DataError(
                f"{path} holds no certificate",
                code="forensics.trust-list",
                where=str(path),
                expected="a PEM file of authorities' certificates",
                next="give the ca.pem that provenance init-ca wrote, or a published trust list",
            )
        return cls(label, text)


@dataclass(frozen=True, slots=True)
class Signer:
    """A chain of certificates and what signs for it: a key, or a callback of a key that stays away.

    ``sign`` is given the bytes and returns an ES256 signature, DER or raw; where it is set, ``key``
    is empty. ``timestamp_url`` is empty unless a timestamp authority was asked for.
    """

    chain: str
    key: str = field(default="", repr=False)
    sign: Callable[[bytes], bytes] | None = None
    timestamp_url: str = ""

    @classmethod
    def open(cls, folder: Path) -> Signer:
        """Read what ``provenance init-ca`` wrote.

        Raises:
            DataError: If chain.pem or signer.key is not there.
        """
        chain, key = folder / CHAIN_FILE, folder / KEY_FILE
        for path in (chain, key):
            if not path.is_file():
                raise DataError(
                    f"{folder} has no {path.name}",
                    code="forensics.no-signer",
                    where=str(folder),
                    expected="chain.pem and signer.key",
                    next=f"stillroom forensics provenance init-ca {folder}",
                )
        return cls(chain.read_text(encoding="ascii"), key.read_text(encoding="ascii"))

    def check_dates(self) -> None:
        """Refuse a certificate that is not in force; the library signs with it all the same.

        Raises:
            DataError: If the leaf has expired, is not yet in force, or cannot be read.
        """
        from cryptography import x509

        try:
            leaf = x509.load_pem_x509_certificate(self.chain.encode("ascii"))
        except ValueError as error:
            raise _refused_certificate(f"the certificate cannot be read: {error}") from error
        now = datetime.now(UTC)
        if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
            raise _refused_certificate(
                f"the certificate holds from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, not now"
            )

    def open_signer(self) -> c2pa.Signer:
        """Return the library's signer."""
        import c2pa

        if self.sign is not None:
            return c2pa.Signer.from_callback(
                self.sign, c2pa.C2paSigningAlg.ES256, self.chain, self.timestamp_url or None
            )
        return c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(
                c2pa.C2paSigningAlg.ES256,
                self.chain.encode("ascii"),
                self.key.encode("ascii"),
                self.timestamp_url.encode("ascii") if self.timestamp_url else None,
            )
        )


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a file says of its own origin, and how far that holds.

    ``trust`` is the label of the list that the signer is on, ``untrusted``, or empty without
    credentials. ``codes`` are the validation failures of the active manifest, ``ingredient_codes``
    those of what it was made from. ``source_types`` are the digital source types that its actions
    name. ``manifests`` is the whole store as the library gives it.
    """

    integrity: Integrity
    trust: str = ""
    issuer: str = ""
    signer: str = ""
    codes: tuple[str, ...] = ()
    ingredient_codes: tuple[str, ...] = ()
    source_types: tuple[str, ...] = ()
    soft_bindings: tuple[str, ...] = ()
    note: str = ""
    manifests: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def lines(self) -> list[str]:
        """Return the three findings as a user reads them."""
        if self.integrity == "none":
            return ["no provenance: " + (self.note or "the file carries no content credentials")]
        if self.integrity == "unreadable":
            return [f"provenance unreadable: {self.note}"]
        said = "as signed" if self.integrity == "intact" else "changed since it was signed"
        if self.integrity == "broken" and self.note:
            said = f"refused by today's rules: {self.note}"
        claim = "" if self.is_trusted else " (self-asserted: anyone can write this name)"
        trust = f"on the {self.named_list}" if self.is_trusted else "vouched for by no trusted list"
        lines = [
            f"integrity: {self.integrity}, the file is {said}",
            f"trust: {self.trust}, the signer is {trust}",
            f"issuer: {escape_line(self.issuer) or 'not named'}{claim}",
        ]
        if self.codes:
            lines.append(f"failures: {', '.join(self.codes)}")
        if self.ingredient_codes:
            lines.append(f"failures of ingredients: {', '.join(self.ingredient_codes)}")
        if self.source_types:
            lines.append(
                f"source: {', '.join(kind.rsplit('/', 1)[-1] for kind in self.source_types)}"
            )
        return lines

    @property
    def is_trusted(self) -> bool:
        """Whether a list that the user trusts vouches for the signer."""
        return self.trust in _LABELS

    @property
    def named_list(self) -> str:
        """The list that vouches, in words; this lab's own authority is on the user's side."""
        return _LISTS.get(self.trust, f"{self.trust} list")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with the manifest store."""
        return {
            "integrity": self.integrity,
            "trust": self.trust or None,
            "issuer": self.issuer or None,
            "signer": self.signer or None,
            "codes": list(self.codes),
            "ingredient_codes": list(self.ingredient_codes),
            "source_types": list(self.source_types),
            "soft_bindings": list(self.soft_bindings),
            "note": self.note,
            "manifests": dict(self.manifests),
        }


def detect_mime_type(path: Path) -> str:
    """Return the media type of a file by how it begins; of one that is not there by its ending.

    Raises:
        DataError: If credentials cannot be kept in such a file.
    """
    try:
        kind = detect_file_type(path)
        found = kind.mime if kind is not None else ""
    except OSError:
        found = ""  # that it cannot be read is told where it is read
    found = found or MIME_TYPES.get(path.suffix.lower(), "")
    if not found:
        raise DataError(
            f"files ending in {path.suffix or 'nothing'} carry no content credentials",
            code="forensics.media-type",
            where=str(path),
            expected=f"one of: {' '.join(sorted(MIME_TYPES))}",
            next="convert the file to one of these",
        )
    return found


def sign_bytes(
    data: bytes,
    mime: str,
    manifest: Mapping[str, Any],
    signer: Signer,
    *,
    source_type: str = "",
    parent: tuple[bytes, str] | None = None,
) -> bytes:
    """Return the file with signed credentials.

    Args:
        data: The unsigned (or already signed) file.
        mime: Its media type.
        manifest: C2PA's manifest definition: title, assertions.
        signer: Who signs.
        source_type: IPTC's digital source type of a file that was made here, as
            ``algorithmicMedia``; empty if the file was there before, which claims nothing of how it
            was made.
        parent: The file that this one was made from and its type; default is the file itself.

    Raises:
        DataError: If the file or the certificate is refused.
    """
    require_packages("c2pa", "cryptography")
    import c2pa

    from stillroom import __version__

    signer.check_dates()

    whole = {"claim_generator_info": [{"name": "stillroom", "version": __version__}], **manifest}
    out = io.BytesIO()
    try:
        with c2pa.Builder(whole, _context([])) as builder, signer.open_signer() as opened:
            if source_type:
                builder.set_intent(c2pa.C2paBuilderIntent.CREATE, _source_member(source_type))
            else:
                builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
            if parent is not None:
                builder.add_ingredient(
                    {"title": "parent", "relationship": "parentOf"},
                    parent[1],
                    io.BytesIO(parent[0]),
                )
            builder.sign(opened, mime, io.BytesIO(data), out)
    except c2pa.C2paError as error:
        raise DataError(
            f"the file cannot be signed: {error}",
            code="forensics.signing",
            where=mime,
            expected="a whole file of that type, and a certificate that C2PA allows and that holds",
            next="stillroom forensics provenance init-ca FOLDER makes one that works",
        ) from error
    return out.getvalue()


def _source_member(name: str) -> c2pa.C2paDigitalSourceType:
    """Return the library's member for IPTC's name of a digital source type."""
    import c2pa

    members = {
        member.name.replace("_", "").lower(): member for member in c2pa.C2paDigitalSourceType
    }
    return members[name.lower()]


def verify_file(
    path: Path, trust: Sequence[TrustList] = (), *, remote: bool = False
) -> Credentials:
    """Return what a file says of its origin; see ``read_credentials``.

    Raises:
        DataError: If the file is missing or of a type that carries no credentials.
    """
    mime = detect_mime_type(path)
    try:
        with path.open("rb") as file:
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
    """Return what a file says of its origin, and how far that holds.

    Args:
        data: The file.
        mime: Its media type.
        trust: Lists in the order they are asked; the first that trusts the signer gives its label.
        remote: Fetch a manifest that lies elsewhere, and ask OCSP; needs the network.
    """
    return _read_stream(io.BytesIO(data), mime, trust, remote=remote)


def _read_stream(
    file: BinaryIO, mime: str, trust: Sequence[TrustList], *, remote: bool
) -> Credentials:
    """Return what a file says; it is read in parts, so that a long clip takes no more memory."""
    require_packages("c2pa")
    import c2pa

    if mime not in c2pa.Reader.get_supported_mime_types():
        return _read_loose(file, mime)
    state, store, note = "", {}, ""
    label = "untrusted"
    for one in trust or (TrustList("user", ""),):
        try:
            with (
                _context([one.anchors] if one.anchors else [], remote=remote) as context,
                c2pa.Reader(mime, file, context=context) as reader,
            ):
                store = json.loads(reader.json())
                note = explain_mismatch(file, reader, _codes(store))
        except c2pa.C2paError as error:
            return _unreadable(str(error), remote=remote)
        file.seek(0)
        state = str(store.get("validation_state", ""))
        if state == "Trusted":
            label = one.label
            break
    return replace(_read_store(store, state, label), note=note)


def _read_loose(file: BinaryIO, mime: str) -> Credentials:
    """Return what a file says whose kind the library does not bind to its credentials."""
    import c2pa

    data = file.read()
    found = read_font_store(data) if mime.startswith("font/") else None
    if found is None:
        # What lies in other kinds is not looked for: only that the user is not told "none".
        note = f"credentials in files of the type {mime} are not read by this version of c2pa"
        is_font = mime.startswith("font/")
        return Credentials("none") if is_font else Credentials("unreadable", note=note)
    try:
        with c2pa.Reader("application/c2pa", io.BytesIO(found)) as reader:
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
    """Return the failures of the active manifest, each once."""
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
    # An expired or refused certificate says nothing against the bytes: that is trust.
    refused = [code.rsplit(".", 1)[-1] for code in codes if code.startswith(_CREDENTIAL)]
    of_bytes = [code for code in (*codes, *deltas) if not code.startswith(_CREDENTIAL)]
    is_broken = state == "Invalid" and (bool(of_bytes) or not refused)
    worst = [word for word in refused if word != "untrusted"]
    return Credentials(
        "broken" if is_broken else "intact",
        worst[0] if worst else label,
        str(info.get("issuer") or ""),
        " ".join(str(info.get(key) or "") for key in ("common_name", "cert_serial_number")).strip(),
        tuple(code for code in codes if code != _UNTRUSTED),
        tuple(dict.fromkeys(code for code in deltas if code != _UNTRUSTED)),
        tuple(dict.fromkeys(_source_types(active))),
        tuple(dict.fromkeys(_soft_bindings(active))),
        manifests=store,
    )


def _unreadable(said: str, *, remote: bool) -> Credentials:
    if any(word in said for word in _REMOTE_MANIFEST):
        if remote:
            note = f"the credentials lie elsewhere and could not be fetched: {escape_line(said)}"
            return Credentials("none", note=note)
        note = "the credentials lie elsewhere and were not fetched (--remote fetches them)"
        return Credentials("none", note=note)
    if any(word in said for word in _NO_MANIFEST):
        return Credentials("none")
    return Credentials("unreadable", note=escape_line(said.removeprefix("Other: ")))


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


def _soft_bindings(manifest: Mapping[str, Any]) -> Iterable[str]:
    for data in _assertions(manifest, "c2pa.soft-binding"):
        for block in data.get("blocks", []):
            yield str(block.get("value", ""))


def _context(anchors: Sequence[str], *, remote: bool = False) -> c2pa.Context:
    import c2pa

    return c2pa.Context.from_dict(
        {
            "verify": {
                "verify_trust": True,
                "remote_manifest_fetch": remote,
                "ocsp_fetch": remote,
            },
            "trust": {"trust_anchors": "\n".join(anchors)} if anchors else {},
            "builder": {"thumbnail": {"enabled": False}},
        }
    )


def _refused_certificate(what: str) -> DataError:
    return DataError(
        what,
        code="forensics.certificate",
        expected="a certificate that is in force",
        next="stillroom forensics provenance init-ca FOLDER makes one",
    )


CA_FILE, CHAIN_FILE, KEY_FILE = "ca.pem", "chain.pem", "signer.key"
