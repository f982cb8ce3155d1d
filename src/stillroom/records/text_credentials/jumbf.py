"""Manifest stores of C2PA: what a credential says, as JUMBF boxes of CBOR.

A store holds manifests, the last of which is the active one; a manifest holds assertions, a claim
with the hash of each, and the claim's signature (``cose``). Bytes that are hashed or signed are
kept as they came, never encoded again. Boxes are read in a loop, CBOR to a depth of 16, since texts
of strangers are read.

Source: C2PA Technical Specification 2.4, sections 10 (claims), 11.1 (JUMBF), 18.5 (data hash) and
18.28 (AI disclosure); ISO/IEC 19566-5 (JUMBF); RFC 8949 (CBOR).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import cbor2

__all__ = [
    "COSE_SIGN1_TAG",
    "HASHES",
    "MAX_STORE_BYTES",
    "Disclosure",
    "ManifestError",
    "StoredManifest",
    "build_claim",
    "build_store",
    "decode_cbor",
    "parse_store",
]

MAX_STORE_BYTES = 2**20
HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_UUID_SUFFIX = bytes.fromhex("0011001080 0000AA00389B71".replace(" ", ""))
_REQUESTABLE = 0x03  # the box has a label by which URIs name it
_MAX_DEPTH = 16
COSE_SIGN1_TAG = 18
"""CBOR tag of a COSE_Sign1 message (RFC 9052, section 2)."""
_PLAIN_TAGS = frozenset({0, 1, COSE_SIGN1_TAG})  # dates, and signatures
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
        raise ManifestError("has a claim that is not a map")
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
