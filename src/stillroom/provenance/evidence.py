"""Evidence of an answer (proof, receipt): one signed file with all that it was made from.

The file is a DSSE envelope of an in-toto statement whose subject is the answer's text. Its
predicate holds the question, the state of the index, the passages with their places in the
documents, the digest of what the model or reader read, fingerprints, settings, support and the
answer. Starts and ends are bytes: of the answer and of a passage's text in UTF-8, and of a
document's file; only ``text_start`` and ``text_end`` count the characters of the parsed document.

Sources: DSSE 1.0; in-toto attestation framework, Statement v1. What a stranger can check without a
model is checked here, and in the same way by ``scripts/verify_evidence.py``, which needs nothing of
Stillroom; ``stillroom.flow.evidence`` asks again.

Reads the output of ``--json``, OpenAI's objects from our server, and the evidence of answers.
Passages are not looked up.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.errors import DataError, IntegrityError
from stillroom.objects.disk import require_file
from stillroom.provenance.digests import digest_bytes, digest_text, parse_json
from stillroom.provenance.signing import (
    IN_TOTO_PAYLOAD,
    Trust,
    make_statement,
    open_envelope,
    sign_envelope,
)
from stillroom.provenance.signing.dsse import (
    ENVELOPE_MEMBERS,
    STATEMENT_TYPE,
    decode_base64,
    list_unknown,
)
from stillroom.provenance.signing.keys import PublicKey, parse_public_key
from stillroom.records.origin import make_content_id
from stillroom.records.text_credentials import Disclosure

if TYPE_CHECKING:
    from stillroom.provenance.signing import SigningKey
    from stillroom.records import Citation

__all__ = [
    "CitedSpan",
    "Evidence",
    "EvidenceCheck",
    "EvidenceFinding",
    "EvidenceLayer",
    "StoredAnswer",
    "check_document",
    "check_evidence",
    "describe_citations",
    "disclose_answer",
    "read_answer",
    "read_evidence",
    "seal_evidence",
]

_EVIDENCE_TYPE = "urn:stillroom:answer-evidence:v1"
_PAYLOAD_DIGEST = "payload_sha256"
_MAX_BYTES = 64 * 2**20
EvidenceLayer = Literal[
    "signature", "digest", "quote", "document", "index", "model", "settings", "passages", "prompt",
    "support", "answer",
]  # fmt: skip

_PASSAGE = {
    "number": int,
    "id": str,
    "document_id": str,
    "path": str,
    "document_sha256": str,
    "encoding": str,
    "document_start": int,
    "document_end": int,
    "is_exact": bool,
    "text_start": int,
    "text_end": int,
    "text": str,
    "sha256": str,
    "score": float,
    "rank": int,
    "pages?": [int],
    "title?": str,
    "headings?": [str],
    "origin?": str,
    "license?": str,
}

_QUOTE = {
    "number": int,
    "text": str,
    "answer_start": int,
    "answer_end": int,
    "passage_start": int,
    "passage_end": int,
    "document_start": int,
    "document_end": int,
    "is_exact": bool,
    "short?": str,
}

_SHAPE: dict[str, Any] = {  # ? marks what older or unsigned evidence lacks
    "made": str,
    "question": str,
    "history": [{"role": str, "content": str}],
    "asked_of": str,
    "index": {
        "digest": str,
        "claim": str,
        "snapshot": int,
        "where": str,
        "tenant": str,
        "principals": [str],
    },
    "method": str,
    "reader": str,
    "model": {"name": str, "fingerprint": str, "calls": int},
    "read": {"kind": str, "sha256": str},
    "sampling": dict,
    "settings": dict,
    "withheld": [str],
    "moments": [str],
    "judged?": dict,
    "passages": [_PASSAGE],
    "support": {
        "probability": (float, type(None)),
        "sentences": [
            {"answer_start": int, "answer_end": int, "status": str, "score": float, "cited": [int]}
        ],
    },
    "answer": {
        "text": str,
        "sha256": str,
        "finish_reason": str,
        "abstained": bool,
        "refusal": str,
        "cached_for": str,
        "quotes": [_QUOTE],
        "citations": [{"number": int, "answer_start": int, "answer_end": int}],
    },
    "versions": dict,
    "signer?": {"public_key": str, "certificates?": [str]},
}


@dataclass(frozen=True, slots=True)
class EvidenceFinding:
    """One thing that is wrong with an answer's evidence; ``what`` is a sentence."""

    layer: EvidenceLayer
    what: str
    is_other_signer: bool = False


@dataclass(frozen=True, slots=True)
class EvidenceCheck:
    """What a bundle's own bytes show.

    ``signature`` is one of ``SignatureCheck``'s states, ``key_id`` the key that signed;
    ``open_ends`` are sentences about what nothing covers or checks.
    """

    findings: tuple[EvidenceFinding, ...]
    signature: str
    key_id: str = ""
    open_ends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """A bundle that was read: its envelope, its statement, and the file's name for messages.

    ``unknown`` are names of fields that this version does not know, and does not check.
    """

    envelope: Mapping[str, Any]
    statement: Mapping[str, Any]
    where: str
    unknown: tuple[str, ...] = ()

    @property
    def predicate(self) -> Mapping[str, Any]:
        """What the bundle states of the answer."""
        predicate: Mapping[str, Any] = self.statement["predicate"]
        return predicate

    @property
    def passages(self) -> dict[int, Mapping[str, Any]]:
        """The passages by their numbers in the answer."""
        return {passage["number"]: passage for passage in self.predicate["passages"]}


def seal_evidence(predicate: Mapping[str, Any], signer: SigningKey | None) -> dict[str, Any]:
    """Return the envelope of an answer's evidence.

    The predicate is what ``stillroom.rag.generation.evidence.make_evidence`` returns; without a
    signer the envelope has a digest of all that it states, in place of a signature.
    """
    stated = dict(predicate)
    if signer is not None:
        chain = [base64.b64encode(one).decode() for one in signer.certificates]
        stated["signer"] = {
            "public_key": signer.public_key.pem.decode(),
            "certificates": chain,
        }
    subject = [{"name": "answer", "digest": {"sha256": predicate["answer"]["sha256"]}}]
    payload = _encode(make_statement(subject, _EVIDENCE_TYPE, stated))
    if signer is not None:
        return sign_envelope(payload, IN_TOTO_PAYLOAD, signer)
    head = {"payload": base64.b64encode(payload).decode(), "payloadType": IN_TOTO_PAYLOAD}
    return {**head, "signatures": [], _PAYLOAD_DIGEST: digest_bytes(payload)}


def read_evidence(path: Path) -> Evidence:
    """Read a bundle, whatever its digests and signature.

    Raises:
        DataError: If the file is missing, or is no evidence of an answer.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES >> 20} MiB")
        envelope = parse_json(require_file(path).read_bytes())
        statement = _open(envelope, parse_json)
        if statement is None or statement.get("_type") != STATEMENT_TYPE:
            raise ValueError("not a DSSE envelope with an in-toto statement")
        if statement.get("predicateType") != _EVIDENCE_TYPE:
            raise ValueError(f"predicateType is {statement.get('predicateType')!r:.80}")
        unknown = sorted(statement.keys() - {"_type", "subject", "predicateType", "predicate"})
        unknown += _check_shape(statement.get("predicate"), _SHAPE, "predicate")
    except (OSError, ValueError, RecursionError) as error:
        why = "it is not text" if isinstance(error, UnicodeDecodeError) else error
        raise DataError(
            f"this is not the evidence of an answer: {why}",
            code="data.evidence",
            where=str(path),
            expected=f"a file of 'stillroom ask --evidence', with the type {_EVIDENCE_TYPE}",
            next="of a model, verify the folder of its job; of an exported file, put "
            f"{path.name}.artifact.json beside it; else ask for the file again, or write one: "
            "stillroom ask RUN QUESTION --evidence FILE",
        ) from error
    return Evidence(envelope, statement, str(path), tuple(unknown))


def check_evidence(evidence: Evidence, trust: Trust | None = None) -> EvidenceCheck:
    """Check what can be checked without the documents: signature, digests, quotes in passages."""
    check = _check_signature(evidence, trust or Trust())
    findings = (*check.findings, *_check_digests(evidence), *_check_quotes(evidence))
    named = ", ".join(evidence.unknown)
    unread = [f"fields that are not known here were not checked: {named!r:.200}"] if named else []
    return replace(check, findings=findings, open_ends=(*check.open_ends, *unread))


def check_document(evidence: Evidence, path: str, data: bytes) -> Iterator[EvidenceFinding]:
    """Yield what is wrong with the passages and quotes of one document, given its file's bytes.

    Bytes of formats that are not plain text (``is_exact`` is false) hold a passage in another form;
    of those the digest alone is compared.
    """
    passages = {number: one for number, one in evidence.passages.items() if one["path"] == path}
    if any(digest_bytes(data) != one["document_sha256"] for one in passages.values()):
        yield EvidenceFinding("document", f"{path} is not the file that was read")
        return
    spans = [(one, one) for one in passages.values()]
    quotes = evidence.predicate["answer"]["quotes"]
    spans += [(one, passages[one["number"]]) for one in quotes if one["number"] in passages]
    for part, passage in spans:
        held = _decode(_cut(data, part, "document"), passage["encoding"])
        if part["is_exact"] and held != part["text"]:
            what = "passage" if part is passage else "a quote of"
            yield EvidenceFinding(
                "document", f"{what} [{part['number']}] does not stand in {path}, where it says"
            )


def _check_signature(evidence: Evidence, trust: Trust) -> EvidenceCheck:
    signer, envelope = evidence.predicate.get("signer"), evidence.envelope
    if not envelope["signatures"]:
        if signer is not None:
            return _refuse("the signature was removed: the evidence names a signer")
        wanted = [EvidenceFinding("signature", "the evidence is not signed")] if trust else []
        known = (*ENVELOPE_MEMBERS, _PAYLOAD_DIGEST)
        unknown = [f"the envelope {what}" for what in list_unknown(envelope, known)]
        if _PAYLOAD_DIGEST not in envelope:  # of an older version
            unknown.append("neither a signature nor a digest covers the question and the settings")
        elif envelope[_PAYLOAD_DIGEST] != digest_bytes(decode_base64(envelope["payload"])):
            what = "it was changed, such as its question: it does not have the digest of its whole"
            wanted.append(EvidenceFinding("digest", what))
        return EvidenceCheck(tuple(wanted), "unsigned", open_ends=tuple(unknown))
    try:
        own, chain = _read_signer(signer, evidence.where)
        keys = {key.key_id: key for key in (*trust.keys, *own)}
        open_envelope(envelope, own or list(keys.values()), evidence.where)  # who it says signed
        opened = open_envelope(envelope, list(keys.values()), evidence.where)
    except (IntegrityError, DataError):
        return _refuse("the evidence was changed after it was signed, or its signature is damaged")
    beside = tuple(f"the envelope {what}" for what in opened.beside)
    check = EvidenceCheck((), "unknown-signer", opened.key_id, beside)
    if not trust:
        return check
    if trust.covers(keys[opened.key_id], chain):
        return replace(check, signature="trusted")
    what = f"the signature is valid, but of another signer: key {opened.key_id}"
    other = EvidenceFinding("signature", what, is_other_signer=True)
    return replace(check, findings=(other,), signature="other-signer")


def _refuse(what: str) -> EvidenceCheck:
    return EvidenceCheck((EvidenceFinding("signature", what),), "invalid")


def _read_signer(signer: Any, where: str) -> tuple[list[PublicKey], list[bytes]]:
    """Return the key and the certificates that a bundle gives for its own signer."""
    if signer is None:
        return [], []
    key = parse_public_key(signer["public_key"].encode("utf-8", "replace"), Path(where))
    try:
        chain = [base64.b64decode(one, validate=True) for one in signer.get("certificates", ())]
    except (TypeError, ValueError):
        chain = []
    return [key], chain


def _check_digests(evidence: Evidence) -> Iterator[EvidenceFinding]:
    answer = evidence.predicate["answer"]
    subject = evidence.statement.get("subject")
    stated = [{"name": "answer", "digest": {"sha256": answer["sha256"]}}]
    if digest_text(answer["text"]) != answer["sha256"] or subject != stated:
        yield EvidenceFinding("digest", "the answer's text does not have its digest")
    for passage in evidence.predicate["passages"]:
        number = passage["number"]
        if digest_text(passage["text"]) != passage["sha256"]:
            yield EvidenceFinding("digest", f"passage [{number}] does not have its digest")
        document_id = make_content_id("doc", passage["path"], passage["document_sha256"])
        parts = passage["text_start"], passage["text_end"], passage["text"]
        if (passage["document_id"], passage["id"]) != (
            document_id,
            make_content_id("pas", document_id, *parts),
        ):
            yield EvidenceFinding(
                "digest", f"passage [{number}] does not have the id of its document and text"
            )


def _check_quotes(evidence: Evidence) -> Iterator[EvidenceFinding]:
    answer, passages = evidence.predicate["answer"], evidence.passages
    if len(passages) != len(evidence.predicate["passages"]):
        yield EvidenceFinding("quote", "two passages have one number")
    text = _bytes(answer["text"])
    for quote in answer["quotes"]:
        number, quoted = quote["number"], _bytes(quote["text"])
        if not quoted or _cut(text, quote, "answer") != quoted:
            yield EvidenceFinding("quote", f"a quote of [{number}] does not stand in the answer")
        source = _bytes(passages[number]["text"]) if number in passages else b""
        if _cut(source, quote, "passage") != quoted:
            yield EvidenceFinding("quote", f"a quote does not stand in passage [{number}]")
    for mark in answer["citations"]:
        is_mark = _cut(text, mark, "answer") == b"[%d]" % mark["number"]
        if mark["number"] not in passages or not is_mark:
            yield EvidenceFinding("quote", f"the citation [{mark['number']}] names no passage")


def _open(envelope: object, parse: Any = json.loads) -> dict[str, Any] | None:
    """Return the statement in an envelope, without any check; None if there is none."""
    if not isinstance(envelope, dict) or envelope.get("payloadType") != IN_TOTO_PAYLOAD:
        return None
    if not isinstance(envelope.get("signatures"), list):
        return None
    try:
        statement = parse(decode_base64(envelope["payload"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return statement if isinstance(statement, dict) else None


def _check_shape(value: Any, shape: Any, name: str) -> Iterator[str]:
    """Check types recursively, and yield the names of fields that are not known.

    Raises:
        ValueError: Naming the first value of another type.
    """
    if isinstance(shape, dict):
        yield from _check_shape(value, dict, name)
        known = {key.removesuffix("?"): (key, inner) for key, inner in shape.items()}
        yield from (f"{name}.{key}" for key in sorted(value.keys() - known.keys()))
        for key, (marked, inner) in known.items():
            if key in value:
                yield from _check_shape(value[key], inner, f"{name}.{key}")
            elif key == marked:
                raise ValueError(f"{name}.{key} is missing")
    elif isinstance(shape, list):
        yield from _check_shape(value, list, name)
        for number, item in enumerate(value):
            yield from _check_shape(item, shape[0], f"{name}[{number}]")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        kinds = (*kinds, int) if float in kinds else kinds
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{name} is {type(value).__name__}")


def _cut(data: bytes, part: Mapping[str, Any], kind: str) -> bytes:
    """Return the bytes between a part's start and end of a kind; none outside the data."""
    start, end = part[f"{kind}_start"], part[f"{kind}_end"]
    return data[start:end] if 0 <= start <= end <= len(data) else b""


def _decode(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding, "surrogatepass")
    except (LookupError, UnicodeError):
        return None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _encode(statement: Mapping[str, Any]) -> bytes:
    """Return JSON in UTF-8; lone surrogates, which are invalid in it, stay escaped."""
    try:
        return json.dumps(statement, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(statement, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class CitedSpan:
    """Passage of one citation as stored in the answer."""

    number: int
    passage_id: str
    path: str
    byte_start: int
    byte_end: int
    digest: str
    text: str
    origin: str
    pages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer's text, its model, its source, and its citations.

    ``asked_of`` is the folder that was queried, if stored; ``index`` is the digest of the index
    at that time; ``judged`` is the person's judgment that it follows, if any.
    """

    text: str
    model: str
    asked_of: str
    index: str
    cited: tuple[CitedSpan, ...]
    judged: Mapping[str, Any] = field(default_factory=dict)


def disclose_answer(model: str, details: Mapping[str, Any], name: str = "") -> Disclosure:
    """Return what a content credential says of an answer.

    Quotes are composed of the documents' text, which no model wrote: they are ``composite``, and
    tell of a model's share only where a source is synthetic. An endpoint's address is left out.

    ``model`` is the fingerprint of the model that wrote, ``name`` its name; ``details`` are empty
    for text of a model alone.
    """
    if details.get("quotes") or details.get("answering") == "quote":
        origins = details.get("origins", {})
        kind = "compositeWithTrainedAlgorithmicMedia" if origins.get("synthetic") else "composite"
        return Disclosure(kind)
    is_endpoint = model.startswith("endpoint:")
    return Disclosure(model_name=name, model_identifier="" if is_endpoint else model)


def read_answer(path: Path) -> StoredAnswer | None:
    """Return the answer in a file, or None if it has no answer.

    Raises:
        DataError: If its citations cannot be read.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        content = json.loads(require_file(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    # Only the envelope of an answer's evidence is read as one.
    statement = _open(content)
    if isinstance(statement, dict) and statement.get("predicateType") == _EVIDENCE_TYPE:
        return _read_evidence(path)
    answer = _find_answer(content)
    if answer is None:
        return None
    text, citations, details = answer
    try:
        return StoredAnswer(
            text,
            str(content.get("model", "")),
            str(content.get("asked_of", "")),
            str(details.get("index", "")),
            tuple(map(_read_citation, citations)),
            dict(details.get("judged") or {}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"a citation of the answer cannot be read: {error!r}",
            code="data.answer",
            where=str(path),
            expected="what 'stillroom ask --json' prints, or a reply of 'stillroom serve'",
            next="keep the whole answer, its citations as they are",
        ) from error


def _read_evidence(path: Path) -> StoredAnswer:
    """Return the answer of an evidence bundle; its run is named relative to the file."""
    evidence = read_evidence(path)
    stated, passages = evidence.predicate, evidence.passages
    numbers = {mark["number"] for mark in stated["answer"]["citations"]}
    return StoredAnswer(
        stated["answer"]["text"],
        stated["model"]["name"] or stated["reader"],
        str(path.parent / stated["asked_of"]) if stated["asked_of"] else "",
        stated["index"]["digest"],
        tuple(
            CitedSpan(
                number,
                one["id"],
                one["path"],
                one["document_start"],
                one["document_end"],
                one["document_sha256"],
                one["text"],
                str(one.get("origin", "")),
                tuple(one["pages"]),
            )
            for number, one in sorted(passages.items())
            if number in numbers
        ),
        stated.get("judged", {}),
    )


def _find_answer(content: object) -> tuple[str, list[Any], Mapping[str, Any]] | None:
    """Return text, citations and details from either format."""
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("answer"), str) and isinstance(content.get("citations"), list):
        return content["answer"], content["citations"], content.get("details") or {}
    choices = content.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if isinstance(message, dict) and isinstance(message.get("citations"), list):
        return str(message.get("content")), message["citations"], message.get("answer") or {}
    return None


def _read_citation(citation: Any) -> CitedSpan:
    number, passage, path = int(citation["number"]), citation["passage_id"], citation["path"]
    start, end = int(citation["byte_start"]), int(citation["byte_end"])
    digest, text, origin = (str(citation.get(name, "")) for name in ("digest", "text", "origin"))
    pages = tuple(citation.get("pages", ()))
    return CitedSpan(number, str(passage), str(path), start, end, digest, text, origin, pages)


def describe_citations(
    citations: Sequence[Citation], details: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return citations as plain values, numbered as in the text.

    If the answer's details name its sources, each citation gives the headings, the author and the
    license of its passage, and points to verify.
    """
    sources = {source["number"]: source for source in (details or {}).get("sources", ())}
    return [
        {
            "number": citation.number,
            "passage_id": citation.passage_id,
            **{
                key: getattr(citation.location, key)
                for key in ("path", "digest", "byte_start", "byte_end", "is_exact")
            },
            "pages": list(citation.location.pages),
            "label": citation.location.label,
            "text": citation.text,
            **{
                key: sources[citation.number][key]
                for key in ("title", "headings", "origin", "checked", "license", "flags")
                if key in sources.get(citation.number, {})
            },
        }
        for citation in citations
    ]
