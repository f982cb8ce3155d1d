#!/usr/bin/env python3
"""Verify the evidence of an answer without Stillroom; needs the package cryptography alone.

    python verify_evidence.py answer.json --key alice.pub --documents FOLDER

Checked are the signature, the digests, that every quote stands in the answer and in its passage,
and, with the folder of the documents, that both stand in the files. Whether the same question gives
the same answer needs the run: 'stillroom verify FILE --within RUN'. Exit code: 0 if all holds.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

EVIDENCE_TYPE = "urn:stillroom:answer-evidence:v1"
FIELDS = "made question history asked_of index method reader model read sampling settings"
FIELDS += " withheld moments passages support answer versions"
HASHES = {"secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384, "secp521r1": hashes.SHA512}
Problems = list[tuple[str, str]]


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _content_id(prefix: str, *parts: object) -> str:
    """Return the id of a document or passage: a digest of canonical JSON."""
    encoder = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return f"{prefix}-{_sha256(_utf8(encoder.encode(parts)))[:20]}"


def _cut(data: bytes, part: dict[str, Any], kind: str) -> bytes:
    start, end = part[f"{kind}_start"], part[f"{kind}_end"]
    return data[start:end] if 0 <= start <= end <= len(data) else b""


def _key_id(key: Any) -> str:
    return _sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _is_signed_by(key: Any, signature: bytes, data: bytes) -> bool:
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(HASHES[key.curve.name]()))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        else:
            return False
    except (InvalidSignature, KeyError):
        return False
    return True


def _check_signature(
    envelope: dict[str, Any], payload: bytes, signer: Any, trusted: list[Any]
) -> tuple[Problems, str]:
    """Return what is wrong with the signature, and a line on who signed."""
    if not envelope["signatures"]:
        if signer is not None:
            return [("signature", "it was removed: the evidence names a signer")], ""
        wanted = [("signature", "the evidence is not signed")] if trusted else []
        return wanted, "not signed: digests show accidents, not who made this"
    kind = envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    changed = "the evidence was changed after it was signed, or its signature is damaged"
    try:
        signatures = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
        own = [load_pem_public_key(_utf8(signer["public_key"]))] if signer else []
    except (KeyError, TypeError, ValueError):
        return [("signature", changed)], ""
    for key in (*trusted, *own):
        if any(_is_signed_by(key, signature, signed) for signature in signatures):
            if not trusted:
                return [], f"signed, by a key that you did not name (--key): {_key_id(key)}"
            if _key_id(key) in map(_key_id, trusted):
                return [], f"signed by a key you trust: {_key_id(key)}"
            return [("signature", f"it is valid, but of another signer: {_key_id(key)}")], ""
    return [("signature", changed)], ""


def _check_digests(statement: dict[str, Any], stated: dict[str, Any]) -> Problems:
    problems: Problems = []
    answer = stated["answer"]
    subject = [{"name": "answer", "digest": {"sha256": answer["sha256"]}}]
    if _sha256(_utf8(answer["text"])) != answer["sha256"] or statement["subject"] != subject:
        problems.append(("digest", "the answer's text does not have its digest"))
    for one in stated["passages"]:
        if _sha256(_utf8(one["text"])) != one["sha256"]:
            problems.append(("digest", f"passage [{one['number']}] does not have its digest"))
        document = _content_id("doc", one["path"], one["document_sha256"])
        passage = _content_id("pas", document, one["text_start"], one["text_end"], one["text"])
        if (one["document_id"], one["id"]) != (document, passage):
            what = "does not have the id of its document and text"
            problems.append(("digest", f"passage [{one['number']}] {what}"))
    return problems


def _check_quotes(stated: dict[str, Any]) -> Problems:
    problems: Problems = []
    passages = {one["number"]: _utf8(one["text"]) for one in stated["passages"]}
    if len(passages) != len(stated["passages"]):
        problems.append(("quote", "two passages have one number"))
    text = _utf8(stated["answer"]["text"])
    for quote in stated["answer"]["quotes"]:
        number, quoted = quote["number"], _utf8(quote["text"])
        if not quoted or _cut(text, quote, "answer") != quoted:
            problems.append(("quote", f"a quote of [{number}] does not stand in the answer"))
        if _cut(passages.get(number, b""), quote, "passage") != quoted:
            problems.append(("quote", f"a quote does not stand in passage [{number}]"))
    for mark in stated["answer"]["citations"]:
        is_mark = _cut(text, mark, "answer") == b"[%d]" % mark["number"]
        if mark["number"] not in passages or not is_mark:
            problems.append(("quote", f"the citation [{mark['number']}] names no passage"))
    return problems


def _check_documents(stated: dict[str, Any], folder: Path) -> tuple[Problems, list[str]]:
    """Return what the files contradict, and the documents that are not at hand."""
    problems: Problems = []
    missing: list[str] = []
    passages = {one["number"]: one for one in stated["passages"]}
    parts = [*stated["passages"], *stated["answer"]["quotes"]]
    for path in sorted({one["path"] for one in passages.values()}):
        file = (folder / path).resolve()
        if not file.is_relative_to(folder.resolve()) or not file.is_file():
            missing.append(path)
            continue
        data = file.read_bytes()
        of_file = {number: one for number, one in passages.items() if one["path"] == path}
        if any(_sha256(data) != one["document_sha256"] for one in of_file.values()):
            problems.append(("document", f"{path} is not the file that was read"))
            continue
        for part in parts:
            if part["number"] not in of_file or not part["is_exact"]:
                continue  # in other formats the bytes hold the text in another form
            try:
                encoding = of_file[part["number"]]["encoding"]
                held = _cut(data, part, "document").decode(encoding, "surrogatepass")
            except (LookupError, UnicodeError):
                held = ""
            if held != part["text"]:
                what = f"[{part['number']}] does not stand in {path}, where it says"
                problems.append(("document", what))
    return problems, missing


def main() -> int:
    """Verify one file; return the exit code."""
    parser = argparse.ArgumentParser(description="Verify the evidence of an answer.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--key", type=Path, action="append", default=[], help="public key, PEM")
    parser.add_argument("--documents", type=Path, help="folder of the documents")
    options = parser.parse_args()
    missing: list[str] = []
    try:
        trusted = [load_pem_public_key(path.read_bytes()) for path in options.key]
        envelope = json.loads(options.file.read_bytes())
        payload = base64.b64decode(envelope["payload"], validate=True)
        statement = json.loads(payload)
        stated = statement["predicate"]
        if statement["predicateType"] != EVIDENCE_TYPE or set(FIELDS.split()) - stated.keys():
            raise ValueError(f"no {EVIDENCE_TYPE} with all its fields")
        problems, signed = _check_signature(envelope, payload, stated.get("signer"), trusted)
        problems += _check_digests(statement, stated) + _check_quotes(stated)
        if options.documents:
            found, missing = _check_documents(stated, options.documents)
            problems += found
    except Exception as error:  # noqa: BLE001  # whatever a hostile file breaks
        print(f"format: it cannot be read: {error!r}")
        return 1
    for layer, what in dict.fromkeys(problems):
        print(f"{layer}: {ascii(what)[1:-1]}")
    if not problems:
        print(f"the evidence holds\n  {signed}")
        print("".join(f"  open: {ascii(path)[1:-1]} is not at hand\n" for path in missing), end="")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
