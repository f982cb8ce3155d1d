"""Marks on text that a model wrote, or that quotes people: C2PA content credentials, signed.

The key is the configured one (``STILLROOM_SIGNING_KEY``). Without one, a key is made for the
process, signs, and is forgotten: such a mark proves that the text is as it was marked, and nothing
of who marked it; anyone can make one that looks alike.

Source: C2PA Technical Specification 2.4, A.7, A.8, A.9 and 18.28 (``c2pa.ai-disclosure``).
"""

from __future__ import annotations

import hashlib
import unicodedata
import uuid
from collections.abc import Callable
from functools import lru_cache

from stillroom.errors import DataError, MissingExtraError
from stillroom.records.text_credentials import Disclosure, remove_marks
from stillroom.records.text_credentials.carriers import CARRIERS
from stillroom.records.text_credentials.manifest import build_claim, build_store
from stillroom.records.text_credentials.signature import ClaimSigner

__all__ = ["UNKEPT_NAME", "find_claim_signer", "mark_text"]

UNKEPT_NAME = "Stillroom (key not kept)"
_TARGETS = 64  # lengths of the excluded range that are tried
_MAX_PAD = 64


@lru_cache(maxsize=1)
def _make_unkept_signer() -> ClaimSigner:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return ClaimSigner(Ed25519PrivateKey.generate(), name=UNKEPT_NAME)


def find_claim_signer() -> ClaimSigner:
    """Return the configured signer of texts, or one whose key lives as long as the process.

    Raises:
        DataError: If the configured key cannot be read.
        MissingExtraError: If cryptography is not installed.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MissingExtraError.of("cryptography", "sign", "a mark on a text") from error
    return _make_unkept_signer()


def mark_text(
    text: str,
    disclosure: Disclosure,
    signer: ClaimSigner,
    media_type: str = "text/plain",
) -> str:
    """Return a text with a signed credential; equal inputs give equal claims.

    Args:
        text: The text; plain text is brought into NFC, as the credential demands, and credentials
            that it carries already are removed.
        disclosure: What wrote it.
        signer: The key.
        media_type: ``text/plain``, ``text/html`` or ``text/markdown``.

    Raises:
        DataError: If the type carries no credential, or a page has no head.
    """
    from stillroom import __version__

    carrier = CARRIERS.get(media_type)
    if carrier is None:
        raise _unmarkable(f"{media_type} carries no credential")
    text = remove_marks(text)
    if carrier.is_normalized:
        text = unicodedata.normalize("NFC", text)
    try:
        before, after = carrier.place(text)
        data, start = (before + after).encode(), len(before.encode())
    except ValueError as error:
        raise _unmarkable(str(error)) from error
    assertions = disclosure.build_assertions()
    digest = hashlib.sha256(data).digest()
    name = _make_uuid(digest, repr(disclosure).encode(), signer.protected)
    generator = {"name": "Stillroom", "version": __version__, "specVersion": "2.4.0"}

    def prepare(length: int) -> Callable[[int], str]:
        bound = {
            "exclusions": [{"start": start, "length": length}],
            "alg": "sha256",
            "hash": digest,
            "pad": b"",
        }
        hashed = {**assertions, "c2pa.hash.data": bound}
        boxes, claim = build_claim(hashed, f"xmp:iid:{name}", generator)
        signature = signer.sign(claim)
        label = f"urn:c2pa:{name}"
        return lambda pad: carrier.wrap(
            build_store(label, boxes, claim, signer.wrap(signature, pad))
        )

    return before + _fit(prepare) + after


def _fit(prepare: Callable[[int], Callable[[int], str]]) -> str:
    """Return the element whose bytes are as many as the claim within it says.

    The claim states the length of its own element, of which each byte takes three or four. Zero
    bytes that are not signed fill up to a stated length (10.4.4); where they miss it, the next
    length is tried.
    """
    base = len(prepare(0)(0).encode()) + 12
    for target in range(base, base + _TARGETS):
        build = prepare(target)
        pad = 0
        while pad <= _MAX_PAD:
            element = build(pad)
            missing = target - len(element.encode())
            if missing == 0:
                return element
            if missing < 0:
                break
            pad += max(missing // 4, 1)
    raise RuntimeError("no length of the mark is the one that it states")


def _make_uuid(*parts: bytes) -> uuid.UUID:
    """Return a UUID of version 4 (8.1 demands it) that equal texts of one key share."""
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
    return uuid.UUID(bytes=digest[:16], version=4)


def _unmarkable(what: str) -> DataError:
    return DataError(
        what,
        code="data.mark",
        where="the text to be marked",
        expected="plain text, Markdown, or an HTML page with a head; all valid Unicode",
        next="send it without a mark, or convert it",
    )
