"""A second reader of content credentials, written from the specification alone.

Boxes (ISO/IEC 19566-5), CBOR by cbor2, COSE signatures and certificates by cryptography. It shares
no code with the library that the room uses, and knows JPEG and PNG. Only the active manifest is
verified: its signature, the hashes of its assertions, the hash of the file, and the chain.
"""

import hashlib
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
SIGNED = {
    -7: hashes.SHA256(),
    -35: hashes.SHA384(),
    -36: hashes.SHA512(),
    -37: hashes.SHA256(),
    -38: hashes.SHA384(),
    -39: hashes.SHA512(),
}


@dataclass
class Box:
    """A box: its kind, its label (of superboxes), its content, and the boxes within."""

    kind: bytes
    content: bytes
    label: str = ""
    inner: list = field(default_factory=list)

    def find(self, *path):
        """Return the box at a path of labels, or None."""
        if not path:
            return self
        for box in self.inner:
            if box.label == path[0]:
                return box.find(*path[1:])
        return None

    def cbor(self):
        """Return the bytes of the first CBOR box within."""
        return next(box.content for box in self.inner if box.kind == b"cbor")


@dataclass
class Report:
    """``state`` is none, intact or broken; ``trust`` trusted, untrusted or expired."""

    state: str
    trust: str = ""
    reasons: list = field(default_factory=list)


def read(data, anchors=(), *, now=None):
    """Return a report on a JPEG or PNG; ``anchors`` are PEM texts."""
    store, _ = find_store(data)
    if store is None:
        return Report("none")
    root = parse(store)[0]
    manifest = [box for box in root.inner if box.kind == b"jumb"][-1]
    claim_box = next(box for box in manifest.inner if box.label.startswith("c2pa.claim"))
    claim_bytes = claim_box.cbor()
    claim = cbor2.loads(claim_bytes)
    reasons = []
    chain = check_signature(manifest.find("c2pa.signature").cbor(), claim_bytes, reasons)
    alg = claim.get("alg", "sha256")
    listed = claim.get("assertions") or [
        *claim.get("created_assertions", []),
        *claim.get("gathered_assertions", []),
    ]
    for link in listed:
        path = link["url"].split("jumbf=")[1]
        if path.startswith("/c2pa/"):  # absolute: the manifest's own name stands before
            path = path.split("/", 3)[3]
        box = manifest.find(*path.split("/"))
        made = HASHES[link.get("alg", alg)](box.content).digest() if box else b""
        if made != link["hash"]:
            reasons.append(f"hash of {path}")
    for name in ("c2pa.hash.data",):
        box = manifest.find("c2pa.assertions", name)
        if box is not None:
            check_data(data, cbor2.loads(box.cbor()), alg, reasons)
    return Report("broken" if reasons else "intact", check_chain(chain, anchors, now), reasons)


def find_store(data):
    """Return the store's bytes, and the kind of file."""
    if data[:2] == b"\xff\xd8":
        return jpeg_store(data), "jpeg"
    if data[:4] == b"\x89PNG":
        at = 8
        while at + 8 <= len(data):
            size, kind = struct.unpack(">I4s", data[at : at + 8])
            if kind == b"caBX":
                return data[at + 8 : at + 8 + size], "png"
            at += 12 + size
    return None, ""


def jpeg_store(data):
    """Return the box that lies in APP11 segments, put together."""
    at, parts = 2, {}
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        size = struct.unpack(">H", data[at + 2 : at + 4])[0]
        body = data[at + 4 : at + 2 + size]
        if data[at + 1] == 0xEB and body[:2] == b"JP":
            number, order = struct.unpack(">HI", body[2:8])
            parts.setdefault(number, []).append((order, body[8:]))
        at += 2 + size
    for rows in parts.values():
        rows.sort()
        whole = rows[0][1] + b"".join(row[8:] for _, row in rows[1:])
        if whole[4:8] == b"jumb" and b"c2pa" in whole[:80]:
            return whole
    return None


def parse(data):
    """Return the boxes that lie in some bytes."""
    found, at = [], 0
    while at + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        if size < 8:
            break
        content = data[at + 8 : at + size]
        box = Box(kind, content)
        if kind == b"jumb":
            box.inner = parse(content)
            about = box.inner.pop(0).content
            if about[16] & 2:
                box.label = about[17 : about.index(b"\0", 17)].decode()
        found.append(box)
        at += size
    return found


def check_signature(signature, claim, reasons):
    """Verify the COSE signature of a claim; return the certificates in order."""
    value = cbor2.loads(signature)
    protected, unprotected, _, signed = getattr(value, "value", value)
    header = cbor2.loads(protected)
    kept = header.get(33) or unprotected.get(33) or unprotected.get("x5chain")
    rows = kept if isinstance(kept, (list, tuple)) else [kept]
    chain = [x509.load_der_x509_certificate(one) for one in rows]
    said = cbor2.dumps(["Signature1", protected, b"", claim])
    try:
        verify(chain[0].public_key(), header[1], signed, said)
    except (InvalidSignature, ValueError):
        reasons.append("signature of the claim")
    return chain


def verify(key, alg, signature, said):
    """Raise InvalidSignature unless a key signed some bytes."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        half = len(signature) // 2
        numbers = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
        key.verify(encode_dss_signature(*numbers), said, ec.ECDSA(SIGNED[alg]))
    elif isinstance(key, rsa.RSAPublicKey):
        mark = padding.PSS(padding.MGF1(SIGNED[alg]), padding.PSS.AUTO)
        key.verify(signature, said, mark, SIGNED[alg])
    elif isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, said)


def check_data(data, assertion, alg, reasons):
    """Compare the hash of the file without what it leaves out."""
    made, at = HASHES[assertion.get("alg", alg)](), 0
    for part in sorted(assertion.get("exclusions", []), key=lambda part: part["start"]):
        made.update(data[at : part["start"]])
        at = part["start"] + part["length"]
    made.update(data[at:])
    if made.digest() != assertion["hash"]:
        reasons.append("hash of the file")


def check_chain(chain, anchors, now):
    """Return trusted, untrusted or expired; each certificate has to be of the next or an anchor."""
    time = now or datetime.now(UTC)
    if any(not one.not_valid_before_utc <= time < one.not_valid_after_utc for one in chain):
        return "expired"
    roots = [
        one for text in anchors for one in x509.load_pem_x509_certificates(text.encode("ascii"))
    ]
    for at, one in enumerate(chain):
        if one in roots or any(issued(one, root) for root in roots):
            return "trusted"
        if at + 1 >= len(chain) or not issued(one, chain[at + 1]):
            return "untrusted"
    return "untrusted"


def issued(one, other):
    """Return whether a certificate was signed by another."""
    try:
        one.verify_directly_issued_by(other)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
