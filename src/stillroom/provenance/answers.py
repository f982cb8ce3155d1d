"""Answers as JSON: text, model, index and citations.

Reads the output of ``--json``, OpenAI's objects from our server, and the evidence of answers.
Passages are not looked up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.provenance.evidence import is_evidence, read_evidence
from stillroom.records.text_credentials import Disclosure

if TYPE_CHECKING:
    from stillroom.records import Citation

__all__ = ["CitedSpan", "StoredAnswer", "describe_citations", "disclose_answer", "read_answer"]

_MAX_BYTES = 64 * 2**20


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


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer's text, its model, its source, and its citations.

    ``asked_of`` is the folder that was queried, if stored; ``index`` is the digest of the index
    at that time.
    """

    text: str
    model: str
    asked_of: str
    index: str
    cited: tuple[CitedSpan, ...]


def disclose_answer(model: str, details: Mapping[str, Any], name: str = "") -> Disclosure:
    """Return what a content credential says of an answer.

    Quotes are composed of the documents' text, which no model wrote: they are ``composite``, and
    tell of a model's share only where a source is synthetic. An endpoint's address is left out.

    Args:
        model: Fingerprint of the model that wrote.
        details: The answer's details; empty for text of a model alone.
        name: The model's name.
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
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if is_evidence(content):
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
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"a citation of the answer cannot be read: {error!r}",
            code="data.answer",
            where=str(path),
            expected="what 'stillroom rag ask --json' prints, or a reply of 'stillroom serve'",
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
            )
            for number, one in sorted(passages.items())
            if number in numbers
        ),
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
    return CitedSpan(
        int(citation["number"]),
        str(citation["passage_id"]),
        str(citation["path"]),
        int(citation["byte_start"]),
        int(citation["byte_end"]),
        str(citation.get("digest", "")),
        str(citation.get("text", "")),
        str(citation.get("origin", "")),
    )


def describe_citations(
    citations: Sequence[Citation], details: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return citations as plain values, numbered as in the text.

    Args:
        citations: Citations of one answer.
        details: Details of the answer; if they name its sources, each citation gives the author
            and the license of its passage, and points to verify.
    """
    sources = {source["number"]: source for source in (details or {}).get("sources", ())}
    return [
        {
            "number": citation.number,
            "passage_id": citation.passage_id,
            "path": citation.location.path,
            "digest": citation.location.digest,
            "byte_start": citation.location.byte_start,
            "byte_end": citation.location.byte_end,
            "is_exact": citation.location.is_exact,
            "pages": list(citation.location.pages),
            "label": citation.location.label,
            "text": citation.text,
            **{
                key: sources[citation.number][key]
                for key in ("origin", "checked", "license", "flags")
                if key in sources.get(citation.number, {})
            },
        }
        for citation in citations
    ]
