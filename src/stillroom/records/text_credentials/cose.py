"""Claim signatures of C2PA: COSE_Sign1 messages with their certificates (``x5chain``).

C2PA signs with a certificate. A bare key gets a self-signed one, which proves that one key signed,
and nothing of whose it is. Trust lists are checked by ``forensics.c2pa.signature``; the signatures
of pictures and recordings by the c2pa library, in ``forensics.c2pa.credentials``.

Source: C2PA Technical Specification 2.4, sections 13.2 (COSE) and 14.5 (X.509); RFC 9052 section
4.4 (what is signed); RFC 9360 (``x5chain``).
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import cbor2

from stillroom.records.text_credentials.jumbf import COSE_SIGN1_TAG, ManifestError, decode_cbor

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, KeyUsage, Name

__all__ = [
    "ClaimSigner",
    "SignatureFinding",
    "check_signature",
    "make_key_usage",
    "start_certificate",
]

_ALG, _X5CHAIN = 1, 33
"""COSE header parameters: ``alg`` (RFC 9052, section 3.1) and ``x5chain`` (RFC 9360)."""
_EDDSA = -8
_ECDSA = {-7: "SHA256", -35: "SHA384", -36: "SHA512"}
_PSS = {-37: "SHA256", -38: "SHA384", -39: "SHA512"}
_CURVES = {"secp256r1": -7, "secp384r1": -35, "secp521r1": -36}
_CLAIM_SIGNING = "1.3.6.1.4.1.62558.2.1"
_YEARS = 10


@dataclass(frozen=True)
class ClaimSigner:
    """A private key with the certificates that claims are signed with.

    ``certificates`` is the chain in DER, the signer's own first; without any, a certificate of ten
    years is made whose name is ``name``.
    """

    private_key: EllipticCurvePrivateKey | Ed25519PrivateKey
    certificates: tuple[bytes, ...] = ()
    name: str = "Stillroom"

    @cached_property
    def chain(self) -> tuple[bytes, ...]:
        """The certificates in DER."""
        return self.certificates or (_make_certificate(self.private_key, self.name),)

    @cached_property
    def key_id(self) -> str:
        """SHA-256 of the public key in PEM, in hex."""
        return _make_key_id(self.private_key.public_key())

    @cached_property
    def protected(self) -> bytes:
        """The signed header: algorithm and certificates."""
        curve = getattr(self.private_key, "curve", None)
        algorithm = _EDDSA if curve is None else _CURVES[curve.name]
        chain = self.chain[0] if len(self.chain) == 1 else list(self.chain)
        return cbor2.dumps({_ALG: algorithm, _X5CHAIN: chain})

    def sign(self, claim: bytes) -> bytes:
        """Return the signature of a claim, as COSE writes it (r and s side by side for ECDSA)."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        signed, key = _signed_bytes(self.protected, claim), self.private_key
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            return key.sign(signed)
        digest = getattr(hashes, _ECDSA[_CURVES[key.curve.name]])()
        size = (key.curve.key_size + 7) // 8
        pair = decode_dss_signature(key.sign(signed, ec.ECDSA(digest)))
        return b"".join(number.to_bytes(size, "big") for number in pair)

    def wrap(self, signature: bytes, pad: int = 0) -> bytes:
        """Return the COSE_Sign1 message; ``pad`` zero bytes are not signed (10.4.4)."""
        parts = [self.protected, {"pad": bytes(pad)}, None, signature]
        return cbor2.dumps(cbor2.CBORTag(COSE_SIGN1_TAG, parts))


def _make_key_id(key: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _signed_bytes(protected: bytes, claim: bytes) -> bytes:
    return cbor2.dumps(["Signature1", protected, b"", claim])


def _make_certificate(key: EllipticCurvePrivateKey | Ed25519PrivateKey, name: str) -> bytes:
    """Return a self-signed certificate as C2PA demands it (14.5.1), in DER."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    uses = [x509.ObjectIdentifier(_CLAIM_SIGNING), ExtendedKeyUsageOID.EMAIL_PROTECTION]
    public = key.public_key()
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
    built = (
        start_certificate(subject, subject, public, start, 365 * _YEARS)
        .add_extension(make_key_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(authority, critical=False)
    )
    is_curve = isinstance(key, ec.EllipticCurvePrivateKey)
    return built.sign(key, hashes.SHA256() if is_curve else None).public_bytes(Encoding.DER)


def start_certificate(
    subject: Name, issuer: Name, key: Any, start: datetime.datetime, days: float
) -> CertificateBuilder:
    """Return a certificate of a public key to which extensions are added."""
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
    )


def make_key_usage(*usages: str) -> KeyUsage:
    """Return a key usage with these alone, named as in ``cryptography.x509.KeyUsage``."""
    from cryptography import x509

    names = list(inspect.signature(x509.KeyUsage).parameters)
    return x509.KeyUsage(**{name: name in usages for name in names})


@dataclass(frozen=True, slots=True)
class SignatureFinding:
    """The result of verifying a claim's signature.

    ``codes`` are the C2PA status codes of what failed; ``key_id`` is the SHA-256 of the signer's
    public key in PEM, ``names`` the organization and name of the signer's certificate, which anyone
    can write; ``chain`` the certificates in DER, the signer's own first.
    """

    codes: tuple[str, ...] = ()
    key_id: str = ""
    names: str = ""
    chain: tuple[bytes, ...] = field(default=(), repr=False)


def check_signature(message: bytes, claim: bytes, now: datetime.datetime) -> SignatureFinding:
    """Verify the signature of a claim, offline; ``forensics.c2pa.signature`` checks trust lists.

    The certificate must be valid at ``now``.

    Raises:
        ManifestError: If the message is no signature with a certificate.
        ImportError: If cryptography is not installed.
    """
    from cryptography import x509

    protected, header, signature = _read_message(message)
    chain = header.get(_X5CHAIN, header.get("x5chain"))
    chain = [chain] if isinstance(chain, bytes) else chain
    try:
        certificates = [x509.load_der_x509_certificate(data) for data in chain]
        leaf, key = certificates[0], certificates[0].public_key()
        key_id, may_sign = _make_key_id(key), _may_sign(leaf)
        names = list(dict.fromkeys(str(part.value) for part in leaf.subject))
        spans = [(part.not_valid_before_utc, part.not_valid_after_utc) for part in certificates]
    except Exception as error:  # a stranger's: cryptography fails in many ways
        raise ManifestError(f"has no usable certificate: {error}") from error
    codes = []
    if not _is_valid(key, header.get(_ALG), signature, _signed_bytes(protected, claim)):
        codes.append("claimSignature.mismatch")
    if any(not first <= now <= last for first, last in spans):
        codes.append("claimSignature.outsideValidity")
    if not may_sign:
        codes.append("signingCredential.invalid")
    return SignatureFinding(tuple(codes), key_id, ", ".join(names), tuple(chain))


def _read_message(message: bytes) -> tuple[bytes, Mapping[Any, Any], bytes]:
    """Return the protected header's bytes, both headers as one, and the signature."""
    value = decode_cbor(message)
    if isinstance(value, cbor2.CBORTag) and value.tag == COSE_SIGN1_TAG:
        value = value.value
    try:
        protected, unprotected, _, signature = value
        if not isinstance(protected, bytes) or not isinstance(signature, bytes):
            raise TypeError("protected header and signature are not byte strings")
        return protected, {**unprotected, **decode_cbor(protected)}, signature
    except (TypeError, ValueError) as error:
        raise ManifestError("is signed by no COSE_Sign1 message") from error


def _may_sign(leaf: Certificate) -> bool:
    """Return whether a certificate is one of a signer, as C2PA demands (14.5.1.1)."""
    from cryptography import x509

    extensions = leaf.extensions
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return False
    return bool(usage.digital_signature and not usage.key_cert_sign)


def _is_valid(key: Any, algorithm: object, signature: bytes, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    if not isinstance(algorithm, int):
        return False
    try:
        if isinstance(key, ed25519.Ed25519PublicKey) and algorithm == _EDDSA:
            key.verify(signature, signed)
        elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm in _ECDSA:
            half = len(signature) // 2
            pair = [int.from_bytes(part, "big") for part in (signature[:half], signature[half:])]
            digest = getattr(hashes, _ECDSA[algorithm])()
            key.verify(encode_dss_signature(*pair), signed, ec.ECDSA(digest))
        elif isinstance(key, rsa.RSAPublicKey) and algorithm in _PSS:
            digest = getattr(hashes, _PSS[algorithm])()
            pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
            key.verify(signature, signed, pss, digest)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
