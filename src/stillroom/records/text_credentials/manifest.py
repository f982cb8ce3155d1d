"""Manifest stores: what a credential says, as JUMBF boxes of CBOR.

A store holds manifests, the last of which is the active one; a manifest holds assertions, a claim
with the hash of each, and the claim's signature. Bytes that are hashed or signed are kept as they
came, never encoded again. Boxes are read in a loop, CBOR to a depth of 16, since texts of strangers
are read.

Source: C2PA Technical Specification 2.4, sections 10 (claims), 11.1 (JUMBF), 18.5 (data hash) and
18.28 (AI disclosure); ISO/IEC 19566-5 (JUMBF); RFC 8949 (CBOR).

C2PA signs with a certificate. A bare key gets a self-signed one, which proves that one key signed,
and nothing of whose it is.

Source: C2PA Technical Specification 2.4, sections 13.2 (COSE) and 14.5 (X.509); RFC 9052 section
4.4 (what is signed); RFC 9360 (``x5chain``).
"""

from __future__ import annotations

import datetime
import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import cbor2

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.x509 import Certificate

__all__ = [
    "HASHES",
    "MAX_STORE_BYTES",
    "ClaimSigner",
    "Disclosure",
    "ManifestError",
    "SignatureFinding",
    "StoredManifest",
    "build_claim",
    "build_store",
    "check_signature",
    "decode_cbor",
    "parse_store",
]

MAX_STORE_BYTES = 2**20
HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_UUID_SUFFIX = bytes.fromhex("0011001080 0000AA00389B71".replace(" ", ""))
_REQUESTABLE = 0x03  # the box has a label by which URIs name it
_MAX_DEPTH = 16
_PLAIN_TAGS = frozenset({0, 1, 18})  # dates, and COSE_Sign1
_REFUSED_TAGS = (*(tag for tag in range(2, 64) if tag not in _PLAIN_TAGS), 256, 258, 260, 261)
_LENGTH = struct.Struct(">I")


class ManifestError(ValueError):
    """A manifest store that cannot be read."""


@dataclass(frozen=True, slots=True)
class Disclosure:
    """What a credential says of its text.

    ``source_type`` is IPTC's digital source type: ``trainedAlgorithmicMedia`` for text of a model,
    ``composite`` for quotes of texts by people, ``compositeWithTrainedAlgorithmicMedia`` for a
    mixture. ``model_name`` and ``model_identifier``, a checkpoint's fingerprint, are empty if no
    model wrote any of it.
    """

    source_type: str = "trainedAlgorithmicMedia"
    model_name: str = ""
    model_identifier: str = ""

    def build_assertions(self) -> dict[str, dict[str, Any]]:
        """Return the assertions by label; the model's only where a model wrote."""
        action = {"action": "c2pa.created", "digitalSourceType": _SOURCE_TYPES + self.source_type}
        assertions: dict[str, dict[str, Any]] = {"c2pa.actions.v2": {"actions": [action]}}
        if self.model_name or self.model_identifier:
            named = {"modelName": self.model_name, "modelIdentifier": self.model_identifier}
            model = {"modelType": "c2pa.types.model", **{k: v for k, v in named.items() if v}}
            assertions["c2pa.ai-disclosure"] = model
        return assertions


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """The active manifest of a store, as its bytes say; nothing of it is verified.

    ``assertions`` are decoded by label; ``hashed`` are the bytes of each that the claim's hash
    covers.
    """

    label: str
    claim: Mapping[str, Any]
    claim_bytes: bytes
    signature: bytes
    assertions: Mapping[str, Any] = field(default_factory=dict)
    hashed: Mapping[str, bytes] = field(default_factory=dict)


def build_claim(
    assertions: Mapping[str, Mapping[str, Any]], instance: str, generator: Mapping[str, str]
) -> tuple[dict[str, bytes], bytes]:
    """Return the assertions' boxes by label, and the claim over them as CBOR (10.2.1)."""
    boxes = {
        label: _box(b"cbor", label, (b"cbor", cbor2.dumps(payload)))
        for label, payload in assertions.items()
    }
    claim = {
        "instanceID": instance,
        "claim_generator_info": dict(generator),
        "created_assertions": [
            {
                "url": f"self#jumbf=c2pa.assertions/{label}",
                "hash": hashlib.sha256(box[8:]).digest(),
            }
            for label, box in boxes.items()
        ],
        "signature": "self#jumbf=c2pa.signature",
        "alg": "sha256",
    }
    return boxes, cbor2.dumps(claim)


def build_store(label: str, boxes: Mapping[str, bytes], claim: bytes, signature: bytes) -> bytes:
    """Return the store of one manifest."""
    assertions = _box(b"c2as", "c2pa.assertions", *((b"", box) for box in boxes.values()))
    manifest = _box(
        b"c2ma",
        label,
        (b"", assertions),
        (b"", _box(b"c2cl", "c2pa.claim.v2", (b"cbor", claim))),
        (b"", _box(b"c2cs", "c2pa.signature", (b"cbor", signature))),
    )
    return _box(b"c2pa", "c2pa", (b"", manifest))


def _box(kind: bytes, label: str, *contents: tuple[bytes, bytes]) -> bytes:
    """Return a superbox; contents without a type are boxes themselves."""
    described = kind + _UUID_SUFFIX + bytes([_REQUESTABLE]) + label.encode() + b"\0"
    parts = [_wrap(b"jumd", described)]
    parts += [_wrap(type_, data) if type_ else data for type_, data in contents]
    return _wrap(b"jumb", b"".join(parts))


def _wrap(type_: bytes, data: bytes) -> bytes:
    return _LENGTH.pack(len(data) + 8) + type_ + data


def parse_store(data: bytes) -> StoredManifest:
    """Read the active manifest of a store.

    Raises:
        ManifestError: If the boxes or their CBOR are broken, or a part is missing.
    """
    stores = [body for kind, body in _read_boxes(data) if kind == b"jumb"]
    if not stores:
        raise ManifestError("holds no JUMBF box")
    label, boxes = _read_superbox(stores[0])
    manifests = [body for kind, body in boxes if kind == b"jumb"]
    if label != "c2pa" or not manifests:
        raise ManifestError("holds no manifest")
    label, boxes = _read_superbox(manifests[-1])
    parts = dict(_read_superbox(body, body) for kind, body in boxes if kind == b"jumb")
    claim = parts.get("c2pa.claim.v2", parts.get("c2pa.claim", b""))
    if not claim or "c2pa.signature" not in parts or "c2pa.assertions" not in parts:
        raise ManifestError("has no claim, signature or assertions")
    claim_bytes = _read_content(claim)[1]
    decoded = decode_cbor(claim_bytes)
    if not isinstance(decoded, dict):
        raise ManifestError("has a claim that is no map")
    assertions, hashed = {}, {}
    for kind, body in _read_superbox(parts["c2pa.assertions"])[1]:
        if kind == b"jumb":
            name, _ = _read_superbox(body)
            hashed[name] = body
            kind, content = _read_content(body)
            assertions[name] = decode_cbor(content) if kind == b"cbor" else content
    signature = _read_content(parts["c2pa.signature"])[1]
    return StoredManifest(label, decoded, claim_bytes, signature, assertions, hashed)


def _read_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and content of each box of a sequence."""
    position = 0
    while position < len(data):
        if position + 8 > len(data):
            raise ManifestError("ends within a box")
        (length,) = _LENGTH.unpack_from(data, position)
        kind, start = data[position + 4 : position + 8], position + 8
        if length == 1 and position + 16 <= len(data):
            length, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        elif length == 0:
            length = len(data) - position
        if length < start - position or position + length > len(data):
            raise ManifestError("has a box of an impossible length")
        yield kind, data[start : position + length]
        position += length


def _read_superbox(data: bytes, whole: Any = None) -> tuple[str, Any]:
    """Return the label of a superbox, and its other boxes (or ``whole``, if given)."""
    boxes = list(_read_boxes(data))
    if not boxes or boxes[0][0] != b"jumd" or len(boxes[0][1]) < 17:
        raise ManifestError("has a box without description")
    label = boxes[0][1][17:].split(b"\0", 1)[0].decode("utf-8", "replace")
    return label, boxes[1:] if whole is None else whole


def _read_content(data: bytes) -> tuple[bytes, bytes]:
    """Return type and bytes of the first content box of a superbox."""
    boxes = _read_superbox(data)[1]
    if not boxes:
        raise ManifestError("has an empty box")
    return boxes[0][0], boxes[0][1]


def decode_cbor(data: bytes) -> Any:
    """Decode one CBOR value of a stranger.

    Tags whose values compute or refer are refused: a fraction of two long numbers takes minutes,
    and shared values that contain one another grow without bound where they are written out.

    Raises:
        ManifestError: If it is broken, too deep, says a key twice, or has such a tag.
    """
    try:
        return cbor2.loads(
            data,
            max_depth=_MAX_DEPTH,
            allow_duplicate_keys=False,
            semantic_decoders=dict.fromkeys(_REFUSED_TAGS, _refuse_tag),
        )
    except Exception as error:
        raise ManifestError(f"has broken CBOR: {error}") from error


def _refuse_tag(*_: Any) -> Any:
    raise ManifestError("has a tag that no manifest needs")


_ALG, _CHAIN = 1, 33  # COSE header labels
_ED25519 = -8
_ECDSA = {-7: "SHA256", -35: "SHA384", -36: "SHA512"}
_PSS = {-37: "SHA256", -38: "SHA384", -39: "SHA512"}
_CURVES = {"secp256r1": -7, "secp384r1": -35, "secp521r1": -36}
_CLAIM_SIGNING = "1.3.6.1.4.1.62558.2.1"
_YEARS = 10
_TAG = 18  # COSE_Sign1


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
        algorithm = _ED25519 if curve is None else _CURVES[curve.name]
        chain = self.chain[0] if len(self.chain) == 1 else list(self.chain)
        return cbor2.dumps({_ALG: algorithm, _CHAIN: chain})

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
        return cbor2.dumps(cbor2.CBORTag(_TAG, parts))


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
    usage = x509.KeyUsage(True, *[False] * 8)  # digitalSignature alone
    public = key.public_key()
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=365 * _YEARS))
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(authority, critical=False)
    )
    is_curve = isinstance(key, ec.EllipticCurvePrivateKey)
    return built.sign(key, hashes.SHA256() if is_curve else None).public_bytes(Encoding.DER)


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
    chain = header.get(_CHAIN, header.get("x5chain"))
    chain = [chain] if isinstance(chain, bytes) else chain
    try:
        certificates = [x509.load_der_x509_certificate(data) for data in chain]
        leaf, key = certificates[0], certificates[0].public_key()
        key_id, may_sign = _make_key_id(key), _may_sign(leaf)
        names = list(dict.fromkeys(str(part.value) for part in leaf.subject))
        spans = [(one.not_valid_before_utc, one.not_valid_after_utc) for one in certificates]
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
    value = value.value if isinstance(value, cbor2.CBORTag) and value.tag == _TAG else value
    try:
        protected, unprotected, _, signature = value
        if not isinstance(protected, bytes) or not isinstance(signature, bytes):
            raise TypeError("protected header and signature are no byte strings")
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
        if isinstance(key, ed25519.Ed25519PublicKey) and algorithm == _ED25519:
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
