"""Verify the evidence of an answer without Stillroom; needs the package cryptography alone.

    python verify_evidence.py answer.json --key alice.pub --documents FOLDER

Checked are the signature, the digests, that every quote stands in the answer and in its passage,
and, with --documents, that both stand in the files. Whether the same question gives the same answer
needs the run: 'stillroom verify FILE --within RUN'. Exit code: 0 if all holds.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

EVIDENCE_TYPE = "urn:stillroom:answer-evidence:v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
TYPES = {"s": str, "i": int, "b": bool, "n": (int, float), "d": dict, "?": (int, float, type(None))}
# fields of each part with their types; @ are a start and an end, [ is a list
FIELDS = """evidence made:s question:s history:[turn asked_of:s index:index method:s reader:s
model:model read:read sampling:d settings:d withheld:[s moments:[s passages:[passage
support:support answer:answer versions:d; turn role:s content:s; index digest:s claim:s snapshot:i
where:s tenant:s principals:[s; model name:s fingerprint:s calls:i; read kind:s sha256:s; support
probability:? sentences:[sentence; sentence answer:@ status:s score:n cited:[i; passage number:i
id:s document_id:s path:s text:s score:n document_sha256:s encoding:s document:@ is_exact:b text:@
sha256:s rank:i; answer text:s sha256:s finish_reason:s abstained:b refusal:s cached_for:s
quotes:[quote citations:[citation; citation number:i answer:@; quote number:i text:s answer:@
passage:@ document:@ is_exact:b"""
Found = Iterator[tuple[str, str]]
HASHES = {"secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384, "secp521r1": hashes.SHA512}


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _content_id(prefix: str, *parts: object) -> str:  # of a document or passage
    encoder = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return f"{prefix}-{_sha256(_utf8(encoder.encode(parts)))[:20]}"


def _cut(data: bytes, part: dict[str, Any], kind: str) -> bytes:
    start, end = part[f"{kind}_start"], part[f"{kind}_end"]
    return data[start:end] if 0 <= start <= end <= len(data) else b""


def _check_shape(value: Any, kind: str) -> None:
    if kind in TYPES:
        if not isinstance(value, TYPES[kind]) or isinstance(value, bool) != (kind == "b"):
            raise TypeError(f"{value!r:.40} is of another type than stated")
    elif kind[0] == "[":
        for item in value if isinstance(value, list) else [None]:
            _check_shape(item, kind[1:])
    else:
        _, *fields = next(one for one in map(str.split, FIELDS.split(";")) if one[0] == kind)
        for field in fields:
            name, inner = field.split(":")
            for end in ("_start", "_end") if inner == "@" else ("",):
                _check_shape(value[name + end], "i" if end else inner)


def _key_id(key: Any) -> str:
    return _sha256(key.public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo))


def _is_signed_by(key: Any, signature: bytes, data: bytes) -> bool:
    curve = getattr(key, "curve", None)
    try:
        key.verify(signature, data, *([ec.ECDSA(HASHES[curve.name]())] if curve else []))
    except (InvalidSignature, KeyError):
        return False
    return curve is not None or isinstance(key, ed25519.Ed25519PublicKey)


def _check_signature(
    envelope: dict[str, Any], payload: bytes, signer: Any, trusted: list[Any]
) -> tuple[list[tuple[str, str]], str]:
    """Return what is wrong with the signature, and a line on who signed."""
    if not envelope["signatures"]:
        if signer is not None:
            return [("signature", "it was removed: the evidence names a signer")], ""
        missing = [("signature", "the evidence is not signed")] * bool(trusted)
        return missing, "not signed: digests show accidents, not who made this"
    signed = b"DSSEv1 28 %s %d %s" % (PAYLOAD_TYPE.encode(), len(payload), payload)
    changed = "the evidence was changed after it was signed, or its signature is damaged"
    try:
        made = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
        named = signer.get("public_key") if isinstance(signer, dict) else None
        own = [pem.load_pem_public_key(_utf8(named))] if isinstance(named, str) else []
    except (KeyError, TypeError, ValueError):
        return [("signature", changed)], ""
    for key in (*trusted, *own):
        if any(_is_signed_by(key, signature, signed) for signature in made):
            if not trusted:
                return [], f"signed, by a key that you did not name (--key): {_key_id(key)}"
            if _key_id(key) in map(_key_id, trusted):
                return [], f"signed by a key you trust: {_key_id(key)}"
            return [("signature", f"it is valid, but of another signer: {_key_id(key)}")], ""
    return [("signature", changed)], ""


def _check_contents(statement: dict[str, Any], stated: dict[str, Any]) -> Found:  # noqa: C901
    answer, text = stated["answer"], _utf8(stated["answer"]["text"])
    subject = [{"name": "answer", "digest": {"sha256": answer["sha256"]}}]
    if _sha256(text) != answer["sha256"] or statement["subject"] != subject:
        yield "digest", "the answer's text does not have its digest"
    for one in stated["passages"]:
        what, document = one["number"], _content_id("doc", one["path"], one["document_sha256"])
        passage = _content_id("pas", document, one["text_start"], one["text_end"], one["text"])
        if _sha256(_utf8(one["text"])) != one["sha256"]:
            yield "digest", f"passage [{what}] does not have its digest"
        if (one["document_id"], one["id"]) != (document, passage):
            yield "digest", f"passage [{what}] does not have the id of its document and text"
    passages = {one["number"]: _utf8(one["text"]) for one in stated["passages"]}
    if len(passages) != len(stated["passages"]):
        yield "quote", "two passages have one number"
    for quote in answer["quotes"]:
        number, quoted = quote["number"], _utf8(quote["text"])
        if not quoted or _cut(text, quote, "answer") != quoted:
            yield "quote", f"a quote of [{number}] does not stand in the answer"
        if _cut(passages.get(number, b""), quote, "passage") != quoted:
            yield "quote", f"a quote does not stand in passage [{number}]"
    for mark in answer["citations"]:
        if mark["number"] not in passages or _cut(text, mark, "answer") != b"[%d]" % mark["number"]:
            yield "quote", f"the citation [{mark['number']}] names no passage"


def _check_documents(stated: dict[str, Any], folder: Path) -> Found:
    """Yield what the files contradict; ``open`` is what was not compared with them."""
    for path in sorted({one["path"] for one in stated["passages"]}):
        file = (folder / path).resolve()
        if not file.is_relative_to(folder.resolve()) or not file.is_file():
            yield "open", f"{path} is not at hand"
            continue
        data = file.read_bytes()
        here = {one["number"]: one for one in stated["passages"] if one["path"] == path}
        if any(_sha256(data) != one["document_sha256"] for one in here.values()):
            yield "document", f"{path} is not the file that was read"
            continue
        for part in (*here.values(), *stated["answer"]["quotes"]):
            if part["number"] in here and not part["is_exact"]:
                yield "open", f"{path} is said to hold its text in another form, not compared"
            elif part["number"] in here:
                try:
                    encoding = here[part["number"]]["encoding"]
                    held = _cut(data, part, "document").decode(encoding, "surrogatepass")
                except (LookupError, UnicodeError):
                    held = ""
                if held != part["text"]:
                    yield "document", f"[{part['number']}] does not stand in {path}, where it says"


def main() -> int:
    """Verify one file; return the exit code."""
    parser = argparse.ArgumentParser(description="Verify an answer's evidence.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--key", type=Path, action="append", default=[], help="public key, PEM")
    parser.add_argument("--documents", type=Path, help="folder of the documents")
    options = parser.parse_args()
    try:
        trusted = [pem.load_pem_public_key(path.read_bytes()) for path in options.key]
        if options.file.stat().st_size > 64 << 20:
            raise ValueError("more than 64 MiB")
        envelope = json.loads(options.file.read_bytes())
        statement = json.loads(payload := base64.b64decode(envelope["payload"], validate=True))
        stated = statement["predicate"]
        if (envelope["payloadType"], statement["predicateType"]) != (PAYLOAD_TYPE, EVIDENCE_TYPE):
            raise ValueError(f"no {EVIDENCE_TYPE} in an in-toto statement")
        _check_shape(stated, "evidence")
        found, signed = _check_signature(envelope, payload, stated.get("signer"), trusted)
        found += _check_contents(statement, stated)
        unread = [("open", "the documents were not compared (--documents)")]
        found += _check_documents(stated, options.documents) if options.documents else unread
    except Exception as error:  # noqa: BLE001  # whatever a hostile file breaks
        found, signed = [("format", f"it cannot be read: {error!r}")], ""
    is_sound = all(layer == "open" for layer, _ in found)
    print(f"the evidence holds\n  {signed}\n" * is_sound, end="")
    for layer, what in dict.fromkeys(one for one in found if is_sound or one[0] != "open"):
        print(f"{'  ' * is_sound}{layer}: {ascii(what)[1:-1]}")
    return 0 if is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
