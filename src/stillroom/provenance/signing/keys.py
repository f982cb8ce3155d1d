"""Key pairs and certificates for signing: ECDSA (P-256, P-384, P-521) and Ed25519, in PEM files.

A key's id is the SHA-256 of its public key as a PEM SubjectPublicKeyInfo, the ``hint`` of OpenSSF
model signing 1.0, section 4.1. A private key may be encrypted (PKCS #8). Needs ``cryptography``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from stillroom.errors import DataError, IntegrityError
from stillroom.objects.disk import atomic_write, read_secret, write_secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
    from cryptography.hazmat.primitives.hashes import HashAlgorithm
    from cryptography.x509 import Certificate

__all__ = [
    "CODE_SIGNING",
    "KEY_VARIABLE",
    "PASSWORD_VARIABLE",
    "KeyAlgorithm",
    "PublicKey",
    "SigningKey",
    "Trust",
    "certificate_key",
    "create_key_pair",
    "find_configured_key",
    "load_public_key",
    "load_signing_key",
    "load_trust",
    "parse_public_key",
    "read_password",
]

KEY_VARIABLE = "STILLROOM_SIGNING_KEY"
PASSWORD_VARIABLE = "STILLROOM_SIGNING_PASSWORD"  # noqa: S105 - a name, no password
KeyAlgorithm = Literal["ecdsa-p256", "ed25519"]
CODE_SIGNING = "1.3.6.1.5.5.7.3.3"
"""Extended key usage of RFC 5280, section 4.2.1.12."""
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_READ_EXTENSIONS = frozenset({"2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.32", "2.5.29.37"})
"""Key usage, other names, basic constraints, policies (of which a verifier here asks for none: RFC
5280, section 6.1.1) and purposes: those that ``Trust.covers`` reads. A
certificate with another critical one is refused (RFC 5280, section 4.2), as one that limits names.
"""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key that verifies signatures."""

    key: EllipticCurvePublicKey | Ed25519PublicKey

    @property
    def pem(self) -> bytes:
        """The key as a PEM SubjectPublicKeyInfo."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def key_id(self) -> str:
        """SHA-256 of the PEM, in hex."""
        return hashlib.sha256(self.pem).hexdigest()

    def is_valid(self, signature: bytes, data: bytes) -> bool:
        """Return whether the signature over the data was made with this key's private half."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            if isinstance(self.key, ec.EllipticCurvePublicKey):
                self.key.verify(signature, data, ec.ECDSA(_hash_of(self.key)))
            else:
                self.key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, with the certificates that name its owner, if there are any.

    ``certificates`` is the chain in DER, the signer's own first.
    """

    private_key: EllipticCurvePrivateKey | Ed25519PrivateKey
    certificates: tuple[bytes, ...] = ()

    @property
    def public_key(self) -> PublicKey:
        """The public half."""
        return PublicKey(self.private_key.public_key())

    @property
    def key_id(self) -> str:
        """The id of the public half."""
        return self.public_key.key_id

    def sign(self, data: bytes) -> bytes:
        """Return a signature: DER for ECDSA, 64 bytes for Ed25519."""
        from cryptography.hazmat.primitives.asymmetric import ec

        if isinstance(self.private_key, ec.EllipticCurvePrivateKey):
            return self.private_key.sign(data, ec.ECDSA(_hash_of(self.private_key.public_key())))
        return self.private_key.sign(data)


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys and authorities that a verifier trusts (policy, keyring); empty trusts nobody."""

    keys: tuple[PublicKey, ...] = ()
    authorities: tuple[Certificate, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.keys or self.authorities)

    def covers(
        self,
        key: PublicKey,
        certificates: Sequence[bytes] = (),
        purposes: Collection[str] = (CODE_SIGNING,),
    ) -> bool:
        """Return whether a signer's key is trusted, itself or through its certificates.

        Args:
            key: The signer's key.
            certificates: The signer's chain in DER, its own first; each must be issued by the next
                or by a trusted authority, and all must be valid now, since nothing proves when the
                signature was made. The signer's own must be for signatures, the others for
                certificates, with as many authorities below them as they allow.
            purposes: Extended key usages, as dotted numbers, of which the signer's own certificate
                must have one if it limits its purposes.
        """
        if any(key.key_id == known.key_id for known in self.keys):
            return True
        if not certificates or not self.authorities:
            return False
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm

        try:
            chain = [x509.load_der_x509_certificate(data) for data in certificates]
            is_own = chain[0].public_key() == key.key and _may_sign(chain[0], purposes)
            return is_own and self._is_anchored(chain)
        except (
            ValueError,
            UnsupportedAlgorithm,
            x509.DuplicateExtension,
            x509.InvalidVersion,
            x509.UnsupportedGeneralNameType,
        ):
            return False  # a stranger's certificate may hold anything

    def _is_anchored(self, chain: list[Certificate]) -> bool:
        anchors = [one for one in self.authorities if _is_valid_now(one)]
        for position, certificate in enumerate(chain):
            if not _is_valid_now(certificate) or any(
                one.critical and one.oid.dotted_string not in _READ_EXTENSIONS
                for one in certificate.extensions
            ):
                return False
            if any(_is_issued_by(certificate, anchor, position) for anchor in anchors):
                return True
            if position + 1 == len(chain) or not _is_issued_by(
                certificate, chain[position + 1], position
            ):
                return False
        return False


def _is_valid_now(certificate: Certificate) -> bool:
    return certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc


def _may_sign(certificate: Certificate, purposes: Collection[str]) -> bool:
    """Return whether a certificate is for signatures, and for a purpose if it says for which."""
    from cryptography import x509

    try:
        if not certificate.extensions.get_extension_for_class(
            x509.KeyUsage
        ).value.digital_signature:
            return False
        own = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as error:
        return error.oid == x509.ExtendedKeyUsage.oid
    return any(purpose.dotted_string in purposes for purpose in own)


def _is_authority(certificate: Certificate, below: int) -> bool:
    """Return whether a certificate may issue others, with so many authorities below it."""
    from cryptography import x509

    try:
        limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    if not limits.ca or (limits.path_length is not None and limits.path_length < below):
        return False
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True


def _is_issued_by(certificate: Certificate, issuer: Certificate, below: int) -> bool:
    from cryptography.exceptions import InvalidSignature

    if not _is_authority(issuer, below):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def create_key_pair(
    path: Path, *, algorithm: KeyAlgorithm = "ecdsa-p256", password: bytes | None = None
) -> tuple[Path, Path]:
    """Write a new private key (``NAME.key``, readable by its owner alone) and its public half.

    ``path`` is the files' common name, without suffix. Every tool of OpenSSF model signing verifies
    ``ecdsa-p256``. Without a password the private key is stored in the clear.

    Returns:
        The private and the public (``NAME.pub``) file.

    Raises:
        DataError: If one of the files exists.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        KeySerializationEncryption,
        NoEncryption,
        PrivateFormat,
    )

    private, public = path.with_name(f"{path.name}.key"), path.with_name(f"{path.name}.pub")
    for existing in (private, public):
        if existing.exists():
            raise DataError(
                f"{existing} exists already",
                code="data.exists",
                where=str(existing),
                expected="a new name: a key that is overwritten cannot be recovered",
                next="choose another name, or keep using this key",
            )
    key = (
        ec.generate_private_key(ec.SECP256R1())
        if algorithm == "ecdsa-p256"
        else Ed25519PrivateKey.generate()
    )
    encryption: KeySerializationEncryption = (
        BestAvailableEncryption(password) if password else NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    write_secret(private, pem)
    with atomic_write(public, "wb") as file:
        file.write(SigningKey(key).public_key.pem)
    return private, public


def load_signing_key(
    path: Path, password: bytes | None = None, *, certificates: Path | None = None
) -> SigningKey:
    """Read a private key, and the certificates of its owner.

    ``certificates`` is a PEM file of the chain, the signer's own certificate first.

    Raises:
        DataError: If a file cannot be read, the password is wrong or missing, the key is of another
            kind, or the certificate is another key's.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    data = _read(path, "a private key")
    try:
        key = load_pem_private_key(data, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if b"ENCRYPTED" in data:
            told = f"is encrypted, and {'another' if password else 'no'} password was given"
            raise _password_error(path, told, f"export {PASSWORD_VARIABLE}=...") from error
        if isinstance(error, TypeError):
            told = "has no password, but one was given"
            raise _password_error(path, told, f"unset {PASSWORD_VARIABLE}") from error
        raise _key_error(path, "a private key in PEM") from error
    signer = SigningKey(cast("EllipticCurvePrivateKey", key))
    if not _is_supported(key):
        raise _key_error(path, "ECDSA with P-256, P-384 or P-521, or Ed25519")
    if certificates is None:
        return signer
    try:
        chain = x509.load_pem_x509_certificates(_read(certificates, "certificates"))
    except ValueError as error:
        raise _key_error(certificates, "certificates in PEM, the signer's own first") from error
    if chain[0].public_key() != signer.public_key.key:
        raise _key_error(certificates, f"first the certificate of the key in {path}")
    return SigningKey(signer.private_key, tuple(one.public_bytes(Encoding.DER) for one in chain))


def read_password() -> bytes | None:
    """Return the password of private keys that ``STILLROOM_SIGNING_PASSWORD`` gives, or None."""
    return os.environ.get(PASSWORD_VARIABLE, "").encode() or None


def find_configured_key() -> SigningKey | None:
    """Return the signer that the environment names, or None.

    ``STILLROOM_SIGNING_KEY`` is the path of a private key, ``STILLROOM_SIGNING_PASSWORD`` its
    password.

    Raises:
        DataError: If the key cannot be read.
    """
    path = os.environ.get(KEY_VARIABLE, "")
    return load_signing_key(Path(path), read_password()) if path else None


def load_public_key(path: Path) -> PublicKey:
    """Read a public key in PEM.

    Raises:
        DataError: If the file holds none, or one of another kind.
    """
    return parse_public_key(_read(path, "a public key"), path)


def parse_public_key(data: bytes, where: Path) -> PublicKey:
    """Return the public key in a PEM text; ``where`` is named in errors."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _key_error(where, "a public key in PEM") from error
    if not _is_supported(key):
        raise _key_error(where, "ECDSA with P-256, P-384 or P-521, or Ed25519")
    return PublicKey(cast("EllipticCurvePublicKey", key))


def load_trust(keys: Sequence[Path] = (), authorities: Sequence[Path] = ()) -> Trust:
    """Read the keys and authorities that a verifier trusts.

    Raises:
        DataError: If a file cannot be read.
    """
    from cryptography import x509

    trusted: list[Certificate] = []
    for path in authorities:
        try:
            trusted += x509.load_pem_x509_certificates(_read(path, "certificates"))
        except ValueError as error:
            raise _key_error(path, "certificates of authorities in PEM") from error
    return Trust(tuple(load_public_key(path) for path in keys), tuple(trusted))


def _read(path: Path, what: str) -> bytes:
    try:
        return read_secret(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}",
            code="data.missing",
            where=str(path),
            expected=f"a file with {what}",
            next="check the path; 'stillroom keys new NAME' makes a pair of keys",
        ) from error


def _key_error(path: Path, expected: str) -> DataError:
    return DataError(
        f"{path} holds no key that can be used",
        code="data.key",
        where=str(path),
        expected=expected,
        next="stillroom keys new NAME",
    )


def _password_error(path: Path, told: str, next: str) -> DataError:
    return DataError(
        f"{path} {told}",
        code="data.key",
        where=str(path),
        expected="the key's own password, or none for a key that is not encrypted",
        next=next,
    )


def _is_supported(key: object) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return key.curve.name in _CURVES
    return isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey)


def _hash_of(key: EllipticCurvePublicKey) -> HashAlgorithm:
    """Return the hash that sigstore pairs with a curve."""
    from cryptography.hazmat.primitives import hashes

    by_curve: dict[str, HashAlgorithm] = {
        "secp256r1": hashes.SHA256(),
        "secp384r1": hashes.SHA384(),
        "secp521r1": hashes.SHA512(),
    }
    return by_curve[key.curve.name]


def certificate_key(data: bytes, where: str) -> PublicKey:
    """Return the key of a DER certificate.

    Raises:
        IntegrityError: If it cannot be read, or its key is of another kind.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    unusable = IntegrityError(
        "the signer's certificate cannot be used",
        code="integrity.signature",
        where=where,
        expected="an X.509 certificate of an ECDSA or Ed25519 key",
        next="ask the signer to sign again",
    )
    try:
        key = x509.load_der_x509_certificate(data).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise unusable from error
    if not _is_supported(key):
        raise unusable
    return PublicKey(cast("EllipticCurvePublicKey", key))
