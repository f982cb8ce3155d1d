"""Verify the evidence of an answer without Stillroom; needs the package cryptography alone.

    python verify_evidence.py answer.json --key alice.pub --documents FOLDER

Checked are signature, digests, that quotes stand in the answer and in their passages, and, with
--documents, that both stand in the files. To ask again: 'stillroom verify FILE --within RUN'.
"""

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

KINDS = {"s": str, "i": int, "b": bool, "n": (int, float), "d": dict, "-": (int, float, type(None))}
# fields of each part with their types; [ is a list, = a constant, ? may be missing
FIELDS = """envelope payload:s payloadType:=application/vnd.in-toto+json signatures:[signature
payload_sha256?:s; signature sig:s keyid?:s; statement _type:=https://in-toto.io/Statement/v1
predicateType:=urn:stillroom:answer-evidence:v1 subject:[d predicate:evidence; evidence made:s
question:s history:[turn asked_of:s index:index method:s reader:s model:model read:read sampling:d
settings:d withheld:[s moments:[s passages:[passage support:support answer:answer versions:d
signer?:signer; signer public_key:s certificates?:[s; turn role:s content:s; index digest:s claim:s
snapshot:i where:s tenant:s principals:[s; model name:s fingerprint:s calls:i; read kind:s sha256:s;
support probability:- sentences:[sentence; sentence answer_start:i answer_end:i status:s score:n
cited:[i; passage number:i id:s document_id:s path:s text:s score:n document_sha256:s encoding:s
document_start:i document_end:i is_exact:b text_start:i text_end:i sha256:s rank:i pages?:[i
title?:s headings?:[s origin?:s license?:s; answer text:s sha256:s finish_reason:s abstained:b
refusal:s cached_for:s quotes:[quote citations:[citation; citation number:i answer_start:i
answer_end:i; quote number:i text:s answer_start:i answer_end:i passage_start:i passage_end:i
document_start:i document_end:i is_exact:b short?:s"""
SHAPES = {k: dict(one.split(":", 1) for one in v) for k, *v in map(str.split, FIELDS.split(";"))}
_utf8 = partial(str.encode, encoding="utf-8", errors="surrogatepass")
Found = Iterator[tuple[str, str]]
HASHES = {"secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384, "secp521r1": hashes.SHA512}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _content_id(prefix: str, *parts: object) -> str:  # of a document or passage
    canonical = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    return f"{prefix}-{_sha256(_utf8(canonical))[:20]}"


def _cut(data: bytes, part: dict[str, Any], kind: str) -> bytes:
    start, end = part[f"{kind}_start"], part[f"{kind}_end"]
    return data[start:end] if 0 <= start <= end <= len(data) else b""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice, of which readers take different ones")
    return dict(pairs)


def _check_shape(value: Any, kind: str) -> Found:
    if kind in KINDS:
        if not isinstance(value, KINDS[kind]) or isinstance(value, bool) != (kind == "b"):
            raise TypeError(f"{value!r:.40} is of another type than stated")
    elif kind[0] == "=":
        if value != kind[1:]:
            raise ValueError(f"{value!r:.40} is not {kind[1:]}")
    elif kind[0] == "[":
        for item in value if isinstance(value, list) else [None]:
            yield from _check_shape(item, kind[1:])
    else:
        for name in sorted(value.keys() - {name.rstrip("?") for name in SHAPES[kind]}):
            yield "open", f"{kind} holds {name!r}, which is not known here and was not checked"
        for name, inner in SHAPES[kind].items():
            if name[-1] != "?" or name[:-1] in value:
                yield from _check_shape(value[name.rstrip("?")], inner)


def _key_id(key: Any) -> str:
    return _sha256(key.public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo))


def _is_signed_by(key: Any, signature: str, data: bytes) -> bool:
    curve = getattr(key, "curve", None)
    hashed = [ec.ECDSA(HASHES[curve.name]())] if curve and curve.name in HASHES else []
    try:
        key.verify(base64.b64decode(signature, validate=True), data, *hashed)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return bool(hashed) or isinstance(key, ed25519.Ed25519PublicKey)


def _check_signature(envelope: Any, payload: bytes, signer: Any, trusted: Any) -> tuple[Any, str]:
    rows, digest = envelope["signatures"], envelope.get("payload_sha256")
    named = [pem.load_pem_public_key(_utf8(signer["public_key"]))] if signer else []
    if not rows:
        missing = [("signature", "it is missing, or was removed")] * bool(named or trusted)
        layer = "open" if digest is None else "digest"
        missing += [(layer, "no digest covers the question")] * (digest != _sha256(payload))
        return missing, "not signed: digests show accidents, not who made this"
    data = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    keys = {_key_id(key): key for key in (*trusted, *named)}
    by = [{name for name in keys if _is_signed_by(keys[name], row["sig"], data)} for row in rows]
    if not (made := set().union(*by)) or not made.issuperset(map(_key_id, named)):
        return [("signature", "the evidence was changed since, or its signature is damaged")], ""
    key_id = min(made.intersection(map(_key_id, trusted)) or made)
    beside = [
        ("open", f"beside it stands a signature that names key {row.get('keyid')!r}, of another")
        for row, ids in zip(rows, by, strict=True)
        if not {row.get("keyid") or key_id} == ids == {key_id}
    ]
    beside += [("open", "'payload_sha256' beside it is read by nothing")] * (digest is not None)
    whose = "by a key you trust" if trusted else "by a key that you did not name (--key)"
    if not trusted or key_id in map(_key_id, trusted):
        return beside, f"signed, {whose}: {key_id}"
    return [("signature", f"it is valid, but of another signer: {key_id}")], ""


def _check_contents(statement: dict[str, Any], stated: dict[str, Any]) -> Found:
    answer, text = stated["answer"], _utf8(stated["answer"]["text"])
    subject = [{"name": "answer", "digest": {"sha256": answer["sha256"]}}]
    if _sha256(text) != answer["sha256"] or statement["subject"] != subject:
        yield "digest", "the answer's text does not have its digest"
    for one in stated["passages"]:
        what, document = one["number"], _content_id("doc", one["path"], one["document_sha256"])
        passage = _content_id("pas", document, one["text_start"], one["text_end"], one["text"])
        is_named = (one["document_id"], one["id"]) == (document, passage)
        if not is_named or _sha256(_utf8(one["text"])) != one["sha256"]:
            yield "digest", f"passage [{what}] does not have its digest, or ids of another text"
    passages = {one["number"]: _utf8(one["text"]) for one in stated["passages"]}
    if len(passages) != len(stated["passages"]):
        yield "quote", "two passages have one number"
    for quote in answer["quotes"]:
        number, quoted = quote["number"], _utf8(quote["text"])
        places = _cut(text, quote, "answer"), _cut(passages.get(number, b""), quote, "passage")
        if not quoted or places != (quoted, quoted):
            yield "quote", f"a quote of [{number}] does not stand in the answer, or the passage"
    for mark in answer["citations"]:
        if mark["number"] not in passages or _cut(text, mark, "answer") != b"[%d]" % mark["number"]:
            yield "quote", f"the citation [{mark['number']}] names no passage"


def _check_documents(stated: dict[str, Any], folder: Path) -> Found:
    passages = {one["number"]: one for one in stated["passages"]}
    quotes = [one for one in stated["answer"]["quotes"] if one["number"] in passages]
    for part in (*passages.values(), *quotes):
        passage, held = passages[part["number"]], None
        path, file = passage["path"], (folder / passage["path"]).resolve()
        is_here = file.is_relative_to(folder.resolve()) and file.is_file()
        data = file.read_bytes() if is_here else b""
        with suppress(LookupError, UnicodeError):
            held = _cut(data, part, "document").decode(passage["encoding"], "surrogatepass")
        if not is_here:
            yield "open", f"{path} is not at hand"
        elif _sha256(data) != passage["document_sha256"]:
            yield "document", f"{path} is not the file that was read"
        elif not part["is_exact"]:
            yield "open", f"{path} is said to hold its text in another form, not compared"
        elif held != part["text"]:
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
        load = partial(json.loads, object_pairs_hook=_unique, parse_constant=int)  # NaN is no int
        open_ends = [*_check_shape(envelope := load(options.file.read_text("utf-8")), "envelope")]
        payload = base64.b64decode(envelope["payload"], validate=True)
        open_ends += _check_shape(statement := load(payload.decode()), "statement")
        stated = statement["predicate"]
        found, signed = _check_signature(envelope, payload, stated.get("signer"), trusted)
        found += [*open_ends, *_check_contents(statement, stated)]
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
