"""Credentials of a text, verified offline, and what they say of its origin.

The hard binding (``c2pa.hash.data`` with its exclusions) is ``_check_hard_binding``; ``cose``
checks the claim's signature.

Media are read by ``forensics.c2pa.credentials``.

A text that says that a model wrote it is synthetic, whether or not the signature holds: a false
mark loses a text, an ignored one lets a model's text pass for a person's. What a credential says
otherwise, such as that a person wrote, is kept as a link and changes no origin: anyone can sign it.

Nothing is fetched. Revocation and timestamps are not checked: with its certificate, a credential
expires.

Source: C2PA Technical Specification 2.4, sections 15.6 to 15.12 (validation) and A.8.
"""

from __future__ import annotations

import datetime
import hmac
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from stillroom.records.origin import Link, Origin
from stillroom.records.text_credentials.carriers import FoundStore, find_stores, has_credential
from stillroom.records.text_credentials.cose import SignatureFinding, check_signature
from stillroom.records.text_credentials.jumbf import (
    HASHES,
    ManifestError,
    StoredManifest,
    parse_store,
)

__all__ = [
    "MODEL_SOURCE_TYPES",
    "CredentialState",
    "TextCredential",
    "add_credentials",
    "read_credentials",
    "read_detached",
]

CredentialState = Literal["valid", "partial", "changed", "invalid", "unverified", "damaged"]

MODEL_SOURCE_TYPES = (
    "trainedAlgorithmicMedia",
    "compositeWithTrainedAlgorithmicMedia",
    "compositeSynthetic",
    "trainedAlgorithmicData",
)
"""IPTC's digital source types of what a model made, in whole or in part."""

_DISCLOSURE = "c2pa.ai-disclosure"
_MISMATCH = "assertion.dataHash.mismatch"
_MANY_MARKS = r"\p{Mn}{257}"  # to order them takes time by their square
_NO_BINDING = "claim.hardBindings.missing"
_UNBOUND = "not compared with the archive"
_MIN_BUDGET = 2**22
_UNCHECKED = SignatureFinding(("cryptography is not installed",))
_WORDS: dict[str, str] = {
    "valid": "as it was signed",
    "partial": "as it was signed, beside other text",
    "changed": "changed since it was signed",
    "invalid": "not signed as it says",
    "unverified": "not verified: pip install 'stillroom[sign]'",
    "damaged": "cut or damaged",
}


@dataclass(frozen=True, slots=True)
class TextCredential:
    """A credential found in a text, and its validation.

    ``state`` is ``valid``; ``partial`` (the text before it is as signed, other text is there too);
    ``changed`` (signed, but the text differs); ``invalid`` (the signature, a certificate or an
    assertion does not hold); ``unverified`` (cryptography is missing); or ``damaged`` (unreadable).
    ``start`` and ``end`` are the characters that carry it, ``covered`` the range that was signed.
    ``codes`` are C2PA status codes of failures. ``key_id`` is the SHA-256 of the signer's public
    key in PEM; ``signer`` are the names in its certificate, which anyone can write: whether to
    trust the key or its ``chain`` of certificates (DER, the signer's first) is up to the caller.
    """

    state: CredentialState
    start: int
    end: int
    covered: tuple[int, int] = (0, 0)
    codes: tuple[str, ...] = ()
    manifest: str = ""
    generator: str = ""
    source_type: str = ""
    model_name: str = ""
    model_identifier: str = ""
    says_synthetic: bool = False
    key_id: str = ""
    signer: str = ""
    chain: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def model(self) -> str:
        """The model that wrote the text by this credential: its fingerprint, or else its name."""
        return self.model_identifier or self.model_name

    def __str__(self) -> str:
        """Return one line: what it says, whether it holds, and who signed."""
        by = f" by {self.model_name or self.model_identifier}" if self.model else ""
        text = f"written by a model{by}" if self.says_synthetic else self.source_type or "no source"
        who = f"; signer {self.signer} ({self.key_id[:16]})" if self.key_id else ""
        words = _UNBOUND if self.codes == (_UNBOUND,) else f"text {_WORDS[self.state]}"
        codes = f" [{', '.join(self.codes)}]" if self.codes and self.state != "unverified" else ""
        return f"content credential: {text}; {words}{codes}{who}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, without the certificates."""
        return {
            "state": self.state,
            "covered": list(self.covered),
            "codes": list(self.codes),
            "manifest": self.manifest,
            "generator": self.generator,
            "source_type": self.source_type,
            "model_name": self.model_name,
            "model_identifier": self.model_identifier,
            "says_synthetic": self.says_synthetic,
            "key_id": self.key_id,
            "signer": self.signer,
        }


def read_credentials(text: str, now: datetime.datetime | None = None) -> list[TextCredential]:
    """Return the credentials in a text, verified, in order; texts without any cost one search.

    Certificates must be valid at ``now``, by default the present.
    """
    if not has_credential(text):
        return []
    now = now or datetime.datetime.now(datetime.UTC)
    data = _MarkedText.of(text)
    return [_read_one(data, store, now) for store in data.stores]


def read_detached(store: bytes, now: datetime.datetime | None = None) -> TextCredential:
    """Return what a manifest store beside a text says, such as one of an archive.

    Its signature is verified, the bytes that it covers are not compared. ``state`` is
    ``unverified``, ``invalid`` or ``damaged``.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    found = _read_one(_MarkedText.of(""), FoundStore(0, 0, store, "text/plain"), now)
    if found.state == "damaged":
        return found
    codes = tuple(code for code in found.codes if code not in {_MISMATCH, _NO_BINDING})
    is_bad = codes and codes != _UNCHECKED.codes
    return replace(found, state="invalid" if is_bad else "unverified", codes=codes or (_UNBOUND,))


def add_credentials(origin: Origin, credentials: Sequence[TextCredential]) -> Origin:
    """Return an origin with a link for each credential; a model's text becomes synthetic."""
    for one in credentials:
        link = Link(f"c2pa.{one.state}", one.model, (one.manifest,) if one.manifest else ())
        origin = origin.then(link, kind="synthetic" if one.says_synthetic else None)
    return origin


@dataclass(slots=True)
class _MarkedText:
    """A text, its UTF-8, and its stores with the bytes at which they begin and end.

    ``own`` are the first and the last character that are neither a store's nor white space.
    ``budget`` are the bytes that may still be hashed: a text can hold thousands of stores, each of
    which says that it covers all of it.
    """

    text: str
    data: bytes
    stores: list[FoundStore]
    spans: dict[int, tuple[int, int]]
    own: tuple[int, int] | None
    budget: int

    @classmethod
    def of(cls, text: str) -> _MarkedText:
        stores, spans, pieces, position, end = find_stores(text), {}, [], 0, 0
        own: list[int] = []
        for store in [*stores, FoundStore(len(text), len(text), b"", "")]:
            between, element = text[end : store.start], text[store.start : store.end]
            if words := between.strip():
                first = end + len(between) - len(between.lstrip())
                own += [first, first + len(words) - 1]
            pieces += [part.encode("utf-8", "surrogatepass") for part in (between, element)]
            start = position + len(pieces[-2])
            position, end = start + len(pieces[-1]), store.end
            spans[store.start] = (start, position)
        data, ends = b"".join(pieces), (own[0], own[-1]) if own else None
        return cls(text, data, stores, spans, ends, _MIN_BUDGET + 16 * len(data))

    def covers(self, start: int, end: int) -> bool:
        """Return whether nothing but stores and white space lies outside of a range."""
        return self.own is None or (start <= self.own[0] and self.own[1] < end)

    def may_hash(self, size: int) -> bool:
        """Take bytes from the budget; return whether it held them."""
        self.budget -= size
        return self.budget >= 0


def _read_one(text: _MarkedText, store: FoundStore, now: datetime.datetime) -> TextCredential:
    try:
        if not store.is_whole:
            raise ManifestError("is cut short")
        manifest = parse_store(store.data)
    except ManifestError:
        says = _names_model(store.data, _DISCLOSURE)
        code = "manifest.text.corruptedWrapper"
        return TextCredential("damaged", store.start, store.end, codes=(code,), says_synthetic=says)
    codes = tuple(dict.fromkeys(_check_assertions(manifest)))
    try:
        signed = check_signature(manifest.signature, manifest.claim_bytes, now)
    except ManifestError:  # signed in no way that C2PA knows
        signed = SignatureFinding(("signingCredential.invalid",))
    except ImportError:
        signed = _UNCHECKED
    covered = None if codes else _check_hard_binding(text, store, manifest)
    statement = _read_statement(manifest)
    statement["says_synthetic"] |= _names_model(store.data)  # also of what it was edited from
    state: CredentialState
    if codes or (signed.codes and signed is not _UNCHECKED):
        state = "invalid"
    elif covered is None:
        state, codes = "changed", (_MISMATCH,)
    elif signed is _UNCHECKED:
        state = "unverified"
    else:
        state = "valid" if text.covers(*covered) else "partial"
    return TextCredential(
        state,
        store.start,
        store.end,
        covered or (0, 0),
        (*codes, *signed.codes),
        manifest.label,
        key_id=signed.key_id,
        signer=signed.names,
        chain=signed.chain,
        **statement,
    )


def _names_model(data: bytes, *words: str) -> bool:
    """Return whether a store, in any of its manifests, names a source type of a model."""
    return any(word.encode() in data for word in (*words, *MODEL_SOURCE_TYPES))


def _read_statement(manifest: StoredManifest) -> dict[str, Any]:
    """Return what a manifest says of the text's origin, as fields of a credential."""
    sources = [
        source
        for label, payload in manifest.assertions.items()
        if label.startswith("c2pa.actions") and isinstance(payload, Mapping)
        for action in _as_list(payload.get("actions"))
        if isinstance(action, Mapping)
        if (source := _as_text(action.get("digitalSourceType")).rpartition("/")[2])
    ]
    disclosed = manifest.assertions.get(_DISCLOSURE)
    model = disclosed if isinstance(disclosed, Mapping) else {}
    generator = manifest.claim.get("claim_generator_info")
    named = (_as_list(generator) or [generator])[0]
    is_model = any(source in MODEL_SOURCE_TYPES for source in sources)
    return {
        "source_type": sources[0][:100] if sources else "",
        "says_synthetic": is_model or (disclosed is not None and not sources),
        "model_name": _as_text(model.get("modelName"))[:200],
        "model_identifier": _as_text(model.get("modelIdentifier"))[:200],
        "generator": _as_text(named.get("name"))[:100] if isinstance(named, Mapping) else "",
    }


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _check_assertions(manifest: StoredManifest) -> Iterator[str]:
    """Yield the codes of assertions that the claim does not name with their hash (15.10.3)."""
    claim, named = manifest.claim, set()
    for key in ("created_assertions", "gathered_assertions", "assertions"):
        for entry in _as_list(claim.get(key)):
            entry = entry if isinstance(entry, Mapping) else {}
            label = _as_text(entry.get("url")).rpartition("/")[2]
            hasher = HASHES.get(_as_text(entry.get("alg") or claim.get("alg") or "sha256"))
            body, expected = manifest.hashed.get(label), entry.get("hash")
            named.add(label)
            if body is None:
                yield "assertion.missing"
            elif hasher is None or not isinstance(expected, bytes):
                yield "claim.malformed"
            elif not hmac.compare_digest(hasher(body).digest(), expected):
                yield "assertion.hashedURI.mismatch"
    if manifest.hashed.keys() - named:
        yield "assertion.undeclared"
    if "c2pa.hash.data" not in named:
        yield _NO_BINDING


def _check_hard_binding(
    text: _MarkedText, store: FoundStore, manifest: StoredManifest
) -> tuple[int, int] | None:
    """Return the characters that the hard binding covers; None if they differ (15.12.1).

    The excluded range of plain text tells where the signed text began, so that one pasted into
    another is found too.
    """
    bound, data = manifest.assertions["c2pa.hash.data"], text.data
    first, last = text.spans[store.start]
    try:
        ((start, length),) = [(one["start"], one["length"]) for one in bound["exclusions"]]
        hasher = HASHES[_as_text(bound.get("alg") or manifest.claim.get("alg") or "sha256")]
        expected, end = bound["hash"], start + length
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if not (isinstance(start, int) and isinstance(length, int) and isinstance(expected, bytes)):
        return None
    if not 0 <= start <= end or length > last - first:
        return None
    if store.carrier != "text/plain":
        element = data[start:end].strip()
        if not element or element not in data[first:last] or not text.may_hash(len(data)):
            return None
        signed = hasher(data[:start] + data[end:]).digest()
        return (0, len(text.text)) if signed == expected else None
    if start > first or not length:
        return None
    if start == first and text.may_hash(len(data)):
        normalized = _normalize(data[:start] + data[end:])
        if normalized is not None and hasher(normalized).digest() == expected:
            return 0, len(text.text)
    inner = data[first - start : first]
    normalized = _normalize(inner) if text.may_hash(start) else None
    if normalized is None or hasher(normalized).digest() != expected:
        return None
    return store.start - len(inner.decode("utf-8", "replace")), store.start


def _normalize(data: bytes) -> bytes | None:
    """Return UTF-8 in NFC; None for text that takes too long, or does not begin at a character."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if text.isascii():
        return data
    import regex  # only texts with credentials need it

    return None if regex.search(_MANY_MARKS, text) else unicodedata.normalize("NFC", text).encode()
