"""Marks on text that a model wrote, or that quotes people: C2PA content credentials, signed.

They are verified by ``records.text_credentials.reader``.

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
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

from stillroom.errors import DataError, MissingExtraError
from stillroom.records.text_credentials import Disclosure, find_spans
from stillroom.records.text_credentials.carriers import CARRIERS
from stillroom.records.text_credentials.cose import ClaimSigner
from stillroom.records.text_credentials.jumbf import build_claim, build_store

__all__ = ["UNKEPT_NAME", "TextMarker", "mark_text", "open_marker"]

UNKEPT_NAME = "Stillroom (key not kept)"
_TARGETS = 64  # lengths of the excluded range that are tried
_MAX_PAD = 64


@dataclass(frozen=True, slots=True)
class TextMarker:
    """What marks texts: a key, and whether it outlives the process."""

    signer: ClaimSigner
    is_kept: bool

    def mark(self, text: str, disclosure: Disclosure, media_type: str = "text/plain") -> str:
        """Return a text with its mark; see ``mark_text``."""
        return mark_text(text, disclosure, self.signer, media_type)

    def make_mark(self, text: str, disclosure: Disclosure) -> str:
        """Return the characters to append to a plain text."""
        return self.mark(text, disclosure)[len(text) :]


@lru_cache(maxsize=1)
def _make_unkept_marker() -> TextMarker:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return TextMarker(ClaimSigner(Ed25519PrivateKey.generate(), name=UNKEPT_NAME), is_kept=False)


def open_marker() -> TextMarker:
    """Return the marker with the configured key, or one whose key lives as long as the process.

    Raises:
        DataError: If the configured key cannot be read.
        MissingExtraError: If cryptography is not installed.
    """
    if find_spec("cryptography") is None:
        raise MissingExtraError.of("cryptography", "sign", "a content credential in a text")
    from stillroom.provenance.signing.keys import find_configured_key

    signer = find_configured_key()
    if signer is None:
        return _make_unkept_marker()
    name = f"key {signer.key_id[:16]}"
    return TextMarker(ClaimSigner(signer.private_key, signer.certificates, name), is_kept=True)


def mark_text(
    text: str, disclosure: Disclosure, signer: ClaimSigner, media_type: str = "text/plain"
) -> str:
    """Return a text with a signed credential; the text itself stays as it is.

    Raises:
        DataError: If the type carries no credential, a page has no head, or the text is no valid
            Unicode or has a credential.
    """
    from stillroom import __version__

    carrier = CARRIERS.get(media_type)
    if carrier is None:
        raise _unmarkable(f"{media_type} carries no content credential")
    if find_spans(text):
        raise _unmarkable("the text carries a content credential already")
    try:
        before, after = carrier.place(text)
        covered, start = before + after, len(before.encode())
        data = (
            unicodedata.normalize("NFC", covered) if carrier.is_normalized else covered
        ).encode()
    except ValueError as error:
        raise _unmarkable(str(error)) from error
    assertions = disclosure.build_assertions()
    digest = hashlib.sha256(data).digest()
    name = _make_uuid(digest, repr(disclosure).encode(), signer.protected)
    generator = {"name": "Stillroom", "version": __version__, "specVersion": "2.4.0"}

    def prepare(length: int) -> Callable[[int], str]:
        excluded = [{"start": start, "length": length}]
        bound = {"exclusions": excluded, "alg": "sha256", "hash": digest, "pad": b""}
        hashed = {**assertions, "c2pa.hash.data": bound}
        boxes, claim = build_claim(hashed, f"xmp:iid:{name}", generator)
        signature, label = signer.sign(claim), f"urn:c2pa:{name}"
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
        expected="unmarked plain text, Markdown, or an HTML page with a head; all valid Unicode",
        next="leave it unmarked, or convert it",
    )
