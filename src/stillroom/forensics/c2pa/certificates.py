"""A local certificate authority for C2PA signing.

The authority's key signs one leaf certificate, and the leaf signs media. The leaf meets the C2PA
requirements (version 3, key usage digitalSignature only, extended usage emailProtection, both key
identifiers, an organization), since verifiers refuse any other certificate with little explanation.
Only readers that add ``ca.pem`` to their trust list trust it.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.forensics.c2pa.credentials import CA_FILE, CHAIN_FILE, KEY_FILE
from stillroom.forensics.extras import require_packages
from stillroom.jobs import atomic_write

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, Name

__all__ = ["init_ca", "make_chain"]

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
    require_packages("cryptography", "c2pa")
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
        _write(folder / name, text, secret=name.endswith(".key"))
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
    bodies = [_body(names[index], names[0], keys[index], start, days) for index in range(2)]
    authority_key_id = x509.SubjectKeyIdentifier.from_public_key(keys[0].public_key())
    authority = (
        bodies[0]
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(authority_key_id, critical=False)
        .sign(keys[0], hashes.SHA256())
    )
    leaf = (
        bodies[1]
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
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
    import struct
    import zlib

    from stillroom.forensics.c2pa.credentials import Signer, TrustList, read_credentials, sign_bytes

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    picture = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 72))
        + chunk(b"IEND", b"")
    )
    signed = sign_bytes(
        picture,
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


def _body(
    subject: Name, issuer: Name, key: EllipticCurvePrivateKey, start: datetime.datetime, days: float
) -> CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
    )


def _usage(**usages: bool) -> Any:
    from cryptography import x509

    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: usages.get(name, False) for name in names})


def _pem(certificate: Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def _key_pem(key: EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def _write(path: Path, text: str, *, secret: bool) -> None:
    if not secret:
        with atomic_write(path) as file:
            file.write(text)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
