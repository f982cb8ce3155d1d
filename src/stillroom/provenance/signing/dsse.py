"""DSSE envelopes and in-toto statements, and ``claims.jsonl``, a job's signed statements.

Sources: DSSE 1.0 (github.com/secure-systems-lab/dsse, protocol.md); in-toto attestation framework,
Statement v1.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import IntegrityError
from stillroom.objects.disk import append_line, sync_path
from stillroom.provenance.digests import parse_json
from stillroom.provenance.signing.keys import PublicKey, SigningKey

__all__ = [
    "CLAIMS_FILE",
    "ENVELOPE_MEMBERS",
    "IN_TOTO_PAYLOAD",
    "STATEMENT_TYPE",
    "OpenedEnvelope",
    "append_claim",
    "decode_base64",
    "list_unknown",
    "make_statement",
    "open_envelope",
    "read_claims",
    "read_regular",
    "sign_envelope",
    "sign_statement",
]

CLAIMS_FILE = "claims.jsonl"
IN_TOTO_PAYLOAD = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
ENVELOPE_MEMBERS = ("payload", "payloadType", "signatures")
_MAX_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class OpenedEnvelope:
    """An envelope's payload, and the key that signed it.

    Each of ``beside`` ends a sentence about the file: what stands in the envelope that the
    signature does not cover, as members that DSSE does not know and signatures of others.
    """

    payload: bytes
    payload_type: str
    key_id: str
    beside: tuple[str, ...] = ()


def _encode_pre_authentication(payload: bytes, payload_type: str) -> bytes:
    """Return the bytes that a DSSE signature covers (PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload: bytes, payload_type: str, signer: SigningKey) -> dict[str, Any]:
    """Return a DSSE envelope with one signature, as JSON values."""
    signature = signer.sign(_encode_pre_authentication(payload, payload_type))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": signer.key_id, "sig": base64.b64encode(signature).decode()}],
    }


def decode_base64(text: str) -> bytes:
    """Return the bytes of an envelope's text, in standard or URL-safe Base64: DSSE allows both.

    Raises:
        ValueError: If it is neither.
    """
    return base64.b64decode(text, b"-_", validate=True)


def open_envelope(
    envelope: Mapping[str, Any], keys: Sequence[PublicKey], where: str = ""
) -> OpenedEnvelope:
    """Return an envelope's payload if one of the keys signed it.

    The key ids of an envelope are hints: every key is tried on every signature.

    Raises:
        IntegrityError: If it is no envelope, or none of the keys signed it.
    """
    try:
        payload = decode_base64(envelope["payload"])
        payload_type = str(envelope["payloadType"])
        signatures = [decode_base64(row["sig"]) for row in envelope["signatures"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _signature_error(f"is not a DSSE envelope: {error!r}", where) from error
    signed = _encode_pre_authentication(payload, payload_type)
    for key in keys:
        if any(key.is_valid(signature, signed) for signature in signatures):
            signers = [_find_signer(signature, signed, (key, *keys)) for signature in signatures]
            beside = tuple(_list_beside(envelope, signers, key.key_id))
            return OpenedEnvelope(payload, payload_type, key.key_id, beside)
    raise _signature_error("is signed by none of the given keys, or was changed", where)


def _find_signer(signature: bytes, signed: bytes, keys: Sequence[PublicKey]) -> str:
    """Return the id of the key that made a signature; empty if none of them did."""
    return next((key.key_id for key in keys if key.is_valid(signature, signed)), "")


def _list_beside(envelope: Mapping[str, Any], signers: Sequence[str], key_id: str) -> Iterator[str]:
    """Yield what an envelope holds that the signature of a key does not cover."""
    yield from list_unknown(envelope, ENVELOPE_MEMBERS)
    for row, signer in zip(envelope["signatures"], signers, strict=True):
        named_key = row.get("keyid") or ""
        yield from list_unknown(row, ("keyid", "sig"))
        if not signer:
            yield f"holds a second signature, which names key {named_key!r:.80} and was not checked"
        elif signer != key_id:
            yield f"is signed by another key, too: {signer}"
        elif named_key not in ("", signer):  # a stranger's may be of any type
            yield f"names key {named_key!r:.80}, which did not sign it"


def list_unknown(part: Mapping[str, Any], known: Collection[str]) -> Iterator[str]:
    """Yield a sentence's end on members beside the known ones, which no signature covers."""
    if unknown := ", ".join(sorted(part.keys() - {*known})):
        yield f"holds members that nothing reads and no signature covers: {unknown!r:.80}"


def make_statement(
    subject: Sequence[Mapping[str, Any]], predicate_type: str, predicate: Mapping[str, Any]
) -> dict[str, Any]:
    """Return an in-toto Statement v1 about resources with ``name`` and ``digest``."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [dict(resource) for resource in subject],
        "predicateType": predicate_type,
        "predicate": dict(predicate),
    }


def sign_statement(statement: Mapping[str, Any], signer: SigningKey) -> dict[str, Any]:
    """Sign an in-toto statement as compact JSON: its own bytes count, it is not canonical."""
    payload = json.dumps(statement, ensure_ascii=False, separators=(",", ":")).encode()
    return sign_envelope(payload, IN_TOTO_PAYLOAD, signer)


def append_claim(folder: Path, envelope: Mapping[str, Any]) -> None:
    """Append an envelope to the folder's claims, synced to disk; a last line that was cut goes.

    Other processes that append wait for each other, where the disk has locks.

    Raises:
        IntegrityError: If the claims are not a regular file.
        OSError: If the disk is full; whole claims are then as before.
    """
    path = folder / CLAIMS_FILE
    try:
        if os.path.lexists(path):
            read_regular(path)
    except (OSError, ValueError) as error:
        raise _signature_error(f"cannot be read: {error}", str(path)) from error
    with path.open("ab+") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        last = text.rpartition(b"\n")[2]
        kept = len(text) if _is_claim(last) else len(text) - len(last)
        file.truncate(kept)
        try:
            append_line(path, json.dumps(envelope, separators=(",", ":")))
        except OSError:
            file.truncate(kept)
            raise
    sync_path(path)
    sync_path(folder)


def _is_claim(line: bytes) -> bool:
    try:
        return _is_envelope(parse_json(line))
    except (ValueError, RecursionError):
        return False


def read_claims(folder: Path) -> list[dict[str, Any]]:
    """Return the envelopes of a folder's claims, oldest first; empty without any.

    Raises:
        IntegrityError: If it is not a regular file, or a line is no envelope.
    """
    path = folder / CLAIMS_FILE
    try:
        lines = read_regular(path).splitlines() if os.path.lexists(path) else []
        rows = [parse_json(line) for line in lines if line.strip()]
        if not all(_is_envelope(row) for row in rows):
            raise ValueError("a line is not an envelope")
    except (OSError, ValueError, RecursionError) as error:
        raise _signature_error(f"cannot be read: {error}", str(path)) from error
    return rows


def read_regular(path: Path) -> bytes:
    """Return the bytes of a file from a stranger: no link, device or pipe, and of bounded size.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not a regular file, or larger than a signature over a million files.
    """
    state = path.lstat()
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    if state.st_size > _MAX_BYTES:
        raise ValueError(f"{path.name} has {state.st_size} bytes, more than {_MAX_BYTES}")
    return path.read_bytes()


def _is_envelope(row: Any) -> bool:
    """Return whether a JSON value has the members of an envelope, whatever they hold."""
    signatures = row.get("signatures") if isinstance(row, dict) else None
    return isinstance(signatures, list) and all(isinstance(entry, dict) for entry in signatures)


def _signature_error(problem: str, where: str) -> IntegrityError:
    return IntegrityError(
        f"the {'signature' if problem.startswith('is signed') else 'envelope'} {problem}",
        code="integrity.signature",
        where=where,
        expected="a DSSE envelope signed by a given key",
        next="check the signer's public key, or ask the signer to sign again",
    )
