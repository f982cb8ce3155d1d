"""C2PA signing of user files, credentials of text files, and the trust lists of a verification.

Source: C2PA Technical Specification 2.4, annexes A.7 (HTML), A.8 (plain text) and A.9 (Markdown).

The authority's key signs one leaf certificate, and the leaf signs media. The leaf meets the C2PA
requirements (version 3, key usage digitalSignature only, extended usage emailProtection, both key
identifiers, an organization), since verifiers refuse any other certificate with little explanation.
Only readers that add ``ca.pem`` to their trust list trust it.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import DataError, IntegrityError
from stillroom.forensics.c2pa.credentials import (
    Credentials,
    Integrity,
    TrustList,
    detect_mime_type,
    verify_file,
)
from stillroom.forensics.c2pa.signer import CA_FILE, CHAIN_FILE, KEY_FILE, Signer, sign_bytes
from stillroom.forensics.extras import require_packages
from stillroom.jobs import atomic_write, escape_line
from stillroom.jobs.files import refuse_existing_file
from stillroom.objects.disk import require_file, write_secret
from stillroom.provenance import ARTIFACT_FILE
from stillroom.provenance.text_marks import TextMarker, open_marker
from stillroom.records.text_credentials import Disclosure, TextCredential, read_credentials
from stillroom.records.text_credentials.cose import make_key_usage, start_certificate

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, Name

__all__ = [
    "init_ca",
    "is_text_file",
    "make_chain",
    "open_trust_lists",
    "sign_file",
    "verify_file",
    "verify_text",
]

_TEXT_TYPES = {
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
}

_PURPOSES = ("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1")
"""Key usages of C2PA 2.4, section 14.5: email protection, document signing, claim signing."""

_INTEGRITY: dict[str, Integrity] = {
    "valid": "intact",
    "partial": "intact",
    "changed": "broken",
    "invalid": "broken",
    "unverified": "unreadable",
    "damaged": "unreadable",
}

_WORST = ("damaged", "invalid", "changed", "unverified", "partial", "valid")
_KEY = re.compile(r"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----\s*", re.S)


def is_text_file(path: Path) -> bool:
    """Return whether a file's suffix is one of ``_TEXT_TYPES``."""
    return path.suffix.lower() in _TEXT_TYPES


def _sign_text(file: Path, out: Path, ca: Path | None, made_by: str) -> None:
    """Write a signed copy of a text in UTF-8; arguments as in ``sign_file``.

    ``made_by`` may be empty for a page in the folder of an artifact, which a program computed
    (``algorithmicMedia``).

    Raises:
        DataError: If the file is not UTF-8, is marked already, or nobody says what wrote it; or if
            the authority or the key cannot be read.
        MissingExtraError: If cryptography is not installed.
    """
    from stillroom.provenance.signing.keys import load_signing_key
    from stillroom.records.text_credentials.cose import ClaimSigner

    if ca is None:
        marker = open_marker()
    else:
        Signer.open(ca).check_dates()
        key = load_signing_key(ca / KEY_FILE, certificates=ca / CHAIN_FILE)
        chain = key.certificates[:1]  # the authority's is known to whom trusts it
        marker = TextMarker(ClaimSigner(key.private_key, chain), is_kept=True)
    is_report = file.suffix.lower() == ".html" and any(
        (folder / ARTIFACT_FILE).is_file() for folder in list(file.absolute().parents)[:2]
    )
    if not made_by and not is_report:
        raise DataError(
            f"nothing says what wrote {file}",
            code="data.mark",
            where=str(file),
            expected="--made-by, or the report of an artifact",
            next='give --made-by "name of the model"',
        )
    disclosure = Disclosure(model_name=made_by) if made_by else Disclosure("algorithmicMedia")
    try:
        text = require_file(file).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} cannot be read as UTF-8: {error}",
            code="data.mark",
            where=str(file),
            expected="a text in UTF-8",
            next="convert the file",
        ) from error
    marked = marker.mark(text, disclosure, _TEXT_TYPES[file.suffix.lower()])
    with atomic_write(out, "wb") as target:
        target.write(marked.encode("utf-8"))


def verify_text(path: Path, trust: Sequence[TrustList]) -> Credentials:
    """Read and validate the credentials of a text; of several, those that hold least.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        text = require_file(path).read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}",
            code="data.missing",
            where=str(path),
            expected="a text file",
            next="check the path",
        ) from error
    found = read_credentials(text)
    if not found:
        return Credentials("none")
    worst = min(found, key=lambda one: _WORST.index(one.state))
    integrity = _INTEGRITY[worst.state]
    label = next((one.label for one in trust if _is_trusted(worst, one)), "untrusted")
    read = Credentials(
        integrity,
        label if integrity != "unreadable" else "",
        worst.signer,
        worst.key_id[:16],
        tuple(worst.codes),
        source_types=(worst.source_type,) if worst.source_type else (),
        manifests={str(number): one.to_json() for number, one in enumerate(found)},
    )
    notes = [f"model {escape_line(worst.model_name)} {escape_line(worst.model_identifier)}".strip()]
    notes = notes if worst.model else []
    notes += ["other text in the file is not covered"] if worst.state == "partial" else []
    notes += [str(worst)] if integrity == "unreadable" else []
    notes += [f"{len(found)} credentials; these hold least"] if len(found) > 1 else []
    return replace(read, note="; ".join(notes) if integrity != "broken" else "")


def _is_trusted(credential: TextCredential, trust: TrustList) -> bool:
    from cryptography import x509

    from stillroom.provenance.signing.keys import Trust, certificate_key, parse_public_key

    try:
        key = certificate_key(credential.chain[0], "the text") if credential.chain else None
    except IntegrityError:
        key = None
    if key is None:
        return False
    keys = [parse_public_key(one.encode(), Path(trust.label)) for one in _KEY.findall(trust.keys)]
    known = x509.load_pem_x509_certificates(trust.anchors.encode()) if trust.anchors else []
    return Trust(tuple(keys), tuple(known)).covers(key, credential.chain, _PURPOSES)


def open_trust_lists(
    *,
    official: Sequence[Path] = (),
    interim: Sequence[Path] = (),
    user: Sequence[Path] = (),
    lab: TrustList | None = None,
) -> list[TrustList]:
    """Return the trust lists with their labels, in order of precedence.

    Args:
        official: PEM files of the C2PA's own list.
        interim: PEM files of the list that was frozen at the start of 2026.
        user: PEM files of authorities that the user trusts.
        lab: Authority of the user's lab, which comes last, with the label ``lab``.

    Raises:
        DataError: If a file has no certificate.
    """
    return [
        *(TrustList.read("official", path) for path in official),
        *(TrustList.read("interim", path) for path in interim),
        *(TrustList.read("user", path) for path in user),
        *([lab] if lab is not None else []),
    ]


def sign_file(
    file: Path,
    out: Path,
    ca: Path | None,
    *,
    refuse: Callable[[Path], None],
    title: str = "",
    made_by: str = "",
    timestamp_url: str = "",
) -> Credentials:
    """Sign a copy of a file, and verify it.

    Args:
        file: The file to sign; its existing credentials become those of the parent.
        out: The signed copy.
        ca: A folder created by ``init_ca``; None signs a text with the configured key.
        refuse: Raises for a file that must not be signed without its generator, such as
            ``labeling.lookup.refuse_lab_file``; called if ``made_by`` is empty.
        title: Title shown by readers.
        made_by: Generator of a synthetic file; empty claims nothing of how it was made.
        timestamp_url: URL of a timestamp authority; empty uses none.

    Raises:
        DataError: If the file, its type or the certificate is refused, or ``out`` exists.
    """
    is_text = is_text_file(file)
    mime = _TEXT_TYPES[file.suffix.lower()] if is_text else detect_mime_type(file)
    refuse_existing_file(out)
    named = _TEXT_TYPES.get(out.suffix.lower()) if is_text else detect_mime_type(out)
    if named != mime:
        raise DataError(
            f"{out.name} does not have the type of {file.name}",
            code="forensics.media-type",
            where=str(out),
            expected=f"the suffix {file.suffix}",
            next="name an output of the same type; signing does not convert files",
        )
    if not file.is_file():
        raise DataError(
            f"{file} does not exist",
            code="data.missing",
            where=str(file),
            expected="a media file",
            next="check the path",
        )
    if is_text:
        _sign_text(file, out, ca, made_by)
        return verify_text(out, [TrustList.read("user", ca / CA_FILE)] if ca else [])
    if ca is None:
        raise DataError(
            "media are signed with a certificate of an authority",
            code="forensics.no-signer",
            where="--ca",
            expected="a folder created by init-ca",
            next="stillroom forensics provenance init-ca FOLDER",
        )
    if not made_by:
        refuse(file)
    signer = dataclasses.replace(Signer.open(ca), timestamp_url=timestamp_url)
    manifest: dict[str, object] = {"title": title or file.name}
    if made_by:
        made_by_assertion = {"label": "io.stillroom.made-by", "data": {"generator": made_by}}
        manifest["assertions"] = [made_by_assertion]
    source = "trainedAlgorithmicMedia" if made_by else ""
    signed = sign_bytes(require_file(file).read_bytes(), mime, manifest, signer, source_type=source)
    with atomic_write(out, "wb") as target:
        target.write(signed)
    return verify_file(out, [TrustList.read("user", ca / CA_FILE)])


_CA_KEY_FILE = "ca.key"
_YEAR = 365
_MAX_NAME_LENGTH = 64  # X.520's bound for an organization and a common name


def init_ca(
    folder: Path, *, organization: str = "Stillroom lab", days: int = 10 * _YEAR
) -> list[Path]:
    """Create an authority and a signer, and verify that a signed sample is trusted.

    Args:
        folder: Folder for ca.pem, ca.key, chain.pem and signer.key; only the owner can read the
            keys.
        organization: Issuer name shown by readers.
        days: Validity of the certificates in days, from yesterday.

    Returns:
        The files written.

    Raises:
        DataError: If there is an authority already, the name is too long, or a signed sample is not
            trusted.
        MissingExtraError: If cryptography or c2pa-python is not installed.
    """
    require_packages("cryptography", "c2pa", "PIL")
    if (folder / CHAIN_FILE).exists() or (folder / CA_FILE).exists():
        raise DataError(
            f"{folder} already holds an authority",
            code="forensics.authority-exists",
            where=str(folder / CA_FILE),
            expected="a folder without ca.pem and chain.pem",
            next="use the existing authority, or choose another folder",
        )
    if folder.exists() and not folder.is_dir():
        raise DataError(
            f"{folder} is a file",
            code="data.exists",
            where=str(folder),
            expected="a folder, new or empty",
            next="choose another folder",
        )
    if not 0 < len(organization.strip()) <= _MAX_NAME_LENGTH:
        raise DataError(
            f"the organization's name has {len(organization)} characters",
            code="forensics.certificate",
            where="organization",
            expected=f"1 to {_MAX_NAME_LENGTH} characters, the limit of certificates",
            next="shorten the name",
        )
    texts = make_chain(organization, days)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        if name.endswith(".key"):
            write_secret(folder / name, text.encode("ascii"))
            continue
        with atomic_write(folder / name) as file:
            file.write(text)
    try:
        _verify_authority(folder)
    except BaseException:
        for name in texts:
            (folder / name).unlink(missing_ok=True)
        raise
    return [folder / name for name in texts]


def make_chain(organization: str, days: float) -> dict[str, str]:
    """Return the contents of an authority's files by name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    roles = ("authority", "signer")
    max_length = _MAX_NAME_LENGTH - max(len(role) for role in roles) - 1
    names = [_name(organization, f"{organization[:max_length]} {role}") for role in roles]
    bodies = [
        start_certificate(names[index], names[0], keys[index].public_key(), start, days)
        for index in range(2)
    ]
    authority_key_id = x509.SubjectKeyIdentifier.from_public_key(keys[0].public_key())
    authority = (
        bodies[0]
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(make_key_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(authority_key_id, critical=False)
        .sign(keys[0], hashes.SHA256())
    )
    leaf = (
        bodies[1]
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(make_key_usage("digital_signature"), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
        )
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(keys[1].public_key()), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False
        )
        .sign(keys[0], hashes.SHA256())
    )
    return {
        CA_FILE: _pem(authority),
        _CA_KEY_FILE: _key_pem(keys[0]),
        CHAIN_FILE: _pem(leaf) + _pem(authority),
        KEY_FILE: _key_pem(keys[1]),
    }


def _verify_authority(folder: Path) -> None:
    """Sign a tiny image and verify it; the caller deletes an authority that fails."""
    import io

    from PIL import Image

    from stillroom.forensics.c2pa.credentials import read_credentials

    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "PNG")
    signed = sign_bytes(
        picture.getvalue(),
        "image/png",
        {"title": "trial"},
        Signer.open(folder),
        source_type="algorithmicMedia",
    )
    trust = TrustList("user", (folder / CA_FILE).read_text(encoding="ascii"))
    credentials = read_credentials(signed, "image/png", [trust])
    if credentials.integrity != "intact" or credentials.trust != "user":
        raise DataError(
            f"a sample that it signed reads as {credentials.integrity}, {credentials.trust}",
            code="forensics.certificate",
            where=str(folder),
            expected="intact and trusted",
            next="check the machine's clock",
        )


def _name(organization: str, common: str) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _pem(certificate: Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def _key_pem(key: EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
