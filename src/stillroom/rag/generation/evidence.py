"""Evidence of an answer: what it was asked, shown and made from, to be signed and asked again.

``make_evidence`` states an answer's question, settings, passages, fingerprints and support;
``restore_question`` returns what to ask again. ``stillroom.provenance.evidence`` signs, reads and
checks the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from stillroom.errors import DataError, RecipeError
from stillroom.provenance import ARTIFACT_FILE, digest_text, read_artifact
from stillroom.provenance.artifact import list_installed_versions
from stillroom.rag.generation.answer import ANSWER_SAMPLING
from stillroom.rag.generation.session import JudgedAnswer
from stillroom.rag.interfaces import (
    ANSWER_STRATEGIES,
    CHECKERS,
    DEFAULT_RETRIEVER,
    QUERY_TRANSFORMS,
    RERANKERS,
    RETRIEVERS,
    Query,
    make_query,
)
from stillroom.rag.settings import AnswerSettings, read_answer_settings
from stillroom.records import Answer, Hit, Message, Sampling
from stillroom.registry import Method

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.index.view import AccessContext
    from stillroom.registry import Registry

__all__ = ["RestoredQuestion", "list_outside_settings", "make_evidence", "restore_question"]

_CITATION_MARK = re.compile(r"\[(\d{1,3})\]")
_OUTSIDE = re.compile(r"[/\\~]|hub:")
_CALLERS_OWN = frozenset({"cache", "access"})
_REGISTRIES: dict[str, Registry[Any]] = {
    "retriever": RETRIEVERS,
    "reranker": RERANKERS,
    "transform": QUERY_TRANSFORMS,
    "answering": ANSWER_STRATEGIES,
    "checker": CHECKERS,
}


@dataclass(frozen=True, slots=True)
class RestoredQuestion:
    """What to ask again: the question, its sampling, fields of ``AnswerSettings``, the judgment."""

    query: Query
    sampling: Sampling
    settings: Mapping[str, Any]
    judged: JudgedAnswer | None = None


def make_evidence(
    answer: Answer,
    index: Index,
    model: TextModel,
    question: str | Query,
    *,
    sampling: Sampling = ANSWER_SAMPLING,
    where: str = "",
    access: AccessContext | None = None,
    asked_of: str = "",
    withholds: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Return the predicate of an answer's evidence; docs/reference/evidence.md lists its fields.

    Args:
        answer: The answer.
        index: The index, in the state that answered.
        model: The model of the answer; its fingerprint is read only if it was called.
        question: What was asked, as it was passed to ``ask``.
        sampling: Sampling settings of the answer.
        where: Filter of documents that the index was restricted by.
        access: Access to an index with tenants.
        asked_of: Path of the run or index, relative to the file; a hint for ``show --lineage``.
        withholds: Leave out addresses and paths in the settings of methods, and name them.
        settings: Fields of ``AnswerSettings`` as the caller gave them; the reader of a run is not
            among them.
    """
    query, asking, details = make_query(question), read_answer_settings(settings), answer.details
    methods = _build_methods(asking)
    shown = _dump_settings(asking, methods)
    quotes, calls = details.get("quotes", ()), int(details.get("calls", 0))
    withheld = list(_withhold(shown)) if withholds else []
    is_quoting = bool(quotes) or _is_quoting(methods["answering"])
    read = str(details.get("input_digest", ""))
    kind = ("candidates" if is_quoting else "prompt") if read else "nothing"
    cached = details.get("cached") or {}
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "question": query.text,
        "history": [message.to_json() for message in _list_read(query, asking, details)],
        "asked_of": asked_of,
        "index": {
            "digest": index.digest,
            "claim": _read_claim(index),
            "snapshot": index.snapshot,
            "where": where,
            "tenant": access.tenant if access else "",
            "principals": sorted(access.principals) if access else [],
        },
        "method": str(details.get("answering", "")),
        "reader": str(details.get("answered_by", "")) if is_quoting else "",
        "model": {
            "name": model.name if calls else "",
            "fingerprint": _describe_fingerprint(model.fingerprint) if calls else "",
            "calls": calls,
        },
        "read": {"kind": kind, "sha256": read},
        "sampling": {**asdict(sampling), "stop": list(sampling.stop)},
        "settings": shown,
        "withheld": withheld,
        "moments": _list_moments(methods),
        **({"judged": details["judged"]} if details.get("judged") else {}),
        "passages": list(_describe_passages(answer.hits, index)),
        "support": _describe_support(answer),
        "answer": {
            "text": answer.completion.text,
            "sha256": digest_text(answer.completion.text),
            "finish_reason": answer.completion.finish_reason,
            "abstained": bool(details.get("abstained", False)),
            "refusal": str(details.get("refusal", "")),
            "cached_for": str(cached.get("question", "")),
            "quotes": [_describe_quote(quote, answer) for quote in quotes],
            "citations": list(_locate_marks(answer.completion.text, answer, quotes)),
        },
        "versions": list_installed_versions(),
    }


def _list_read(
    query: Query, asking: AnswerSettings, details: Mapping[str, Any]
) -> Sequence[Message]:
    """Return the earlier messages that were, or with a transform may have been, read."""
    if asking.transform:
        return query.history
    trace = details.get("trace", ())
    found = [text for step in trace for text in step.get("antecedents", ())]
    return [Message("user", text) for text in found]


def restore_question(predicate: Mapping[str, Any]) -> RestoredQuestion:
    """Return what to ask again; of a cached answer, the question that it was made for.

    Raises:
        DataError: If settings are withheld or cannot be read.
    """
    withheld = ", ".join(predicate["withheld"])
    try:
        if withheld:
            raise ValueError(f"the server withheld {withheld}")
        if own := _CALLERS_OWN & predicate["settings"].keys():
            raise ValueError(f"{', '.join(sorted(own))} is nothing that evidence states")
        settings = {
            name: _REGISTRIES[name].build(value) if name in _REGISTRIES and value else value
            for name, value in predicate["settings"].items()
        }
        read_answer_settings(settings)
        stop = tuple(map(str, predicate["sampling"]["stop"]))
        sampling = Sampling(**{**predicate["sampling"], "stop": stop})
        stated = predicate.get("judged")
        judged = JudgedAnswer.from_json(stated) if stated else None
        history = tuple(map(Message.from_json, predicate["history"]))
    except (KeyError, TypeError, ValueError, ValidationError, DataError, RecipeError) as error:
        raise DataError(
            f"the question cannot be asked again: {error}".split("\n", 1)[0],
            code="data.evidence",
            expected="the settings of an answer, as 'stillroom ask --evidence' writes them",
            next="verify without --within, or ask the server's owner",
        ) from error
    text = predicate["answer"]["cached_for"] or predicate["question"]
    return RestoredQuestion(Query(text, history=history), sampling, settings, judged)


def list_outside_settings(predicate: Mapping[str, Any]) -> list[str]:
    """Return the names of settings by which the one who wrote the evidence chose what is opened.

    Those are addresses, paths, repositories of models, and variables of the environment that hold
    keys, where they are not a method's defaults: to ask again with them may send passages and keys
    to an address of a stranger.
    """
    found = []
    for name, registry in _REGISTRIES.items():
        chosen = predicate["settings"].get(name)
        given = chosen if isinstance(chosen, dict) else {"name": chosen}
        fields = type(registry.build(chosen)).model_fields if chosen else {}
        for key, value in given.items():
            is_outside = key.endswith("_env") or _OUTSIDE.search(json.dumps(value))
            is_default = key in fields and value == fields[key].default
            if value is not None and is_outside and not is_default:
                found.append(f"{name}.{key}")
    return found


def _describe_fingerprint(fingerprint: str) -> str:
    """Return a model's fingerprint; of an endpoint a digest, which does not tell its address."""
    is_remote = fingerprint.startswith("endpoint:")
    return f"endpoint:{digest_text(fingerprint)}" if is_remote else fingerprint


def _build_methods(asking: AnswerSettings) -> dict[str, Method | None]:
    chosen = {name: getattr(asking, name) for name in _REGISTRIES}
    chosen["retriever"] = chosen["retriever"] or RETRIEVERS.build(DEFAULT_RETRIEVER)
    return {
        name: None if choice is None else _REGISTRIES[name].build(choice)
        for name, choice in chosen.items()
    }


def _dump_settings(asking: AnswerSettings, methods: Mapping[str, Method | None]) -> dict[str, Any]:
    """Return settings as JSON values; the reader is left out where the run's own is used."""
    values: dict[str, Any] = {
        name: getattr(asking, name) for name in AnswerSettings.model_fields if name not in methods
    }
    values |= {
        name: None if method is None else method.model_dump(mode="json")
        for name, method in methods.items()
    }
    answering = methods["answering"]
    if answering and _is_quoting(answering) and "reader" not in answering.model_fields_set:
        del values["answering"]["reader"]
    return {name: value for name, value in values.items() if name not in _CALLERS_OWN}


def _is_quoting(method: Method | None) -> bool:
    return method is not None and method.method_name() == "quote"


def _withhold(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Remove addresses and paths from settings and those of methods in them; yield their names."""
    for name, value in list(settings.items()):
        if isinstance(value, dict):
            yield from _withhold(value, f"{prefix}{name}.")
        elif isinstance(value, str) and ("://" in value or Path(value).is_absolute()):
            del settings[name]
            yield f"{prefix}{name}"


def _list_moments(methods: Mapping[str, Method | None]) -> list[str]:
    """Return what methods depend on besides settings, as the day; no reader's fingerprint."""
    used = [methods["retriever"], methods["reranker"], methods["answering"]]
    moments = [getattr(method, "moment", "") for method in used if not _is_quoting(method)]
    return [str(moment) for moment in moments if moment]


def _read_claim(index: Index) -> str:
    folder = index.folder.parent
    return read_artifact(folder).claim if (folder / ARTIFACT_FILE).is_file() else ""


def _describe_passages(hits: Sequence[Hit], index: Index) -> Iterator[dict[str, Any]]:
    encodings: dict[str, str] = {}
    for number, hit in enumerate(hits, 1):
        passage, place = hit.passage, hit.passage.location
        name, size = passage.document_id, place.byte_end - place.byte_start
        is_plain = place.is_exact and passage.text.isascii() and size == len(passage.text)
        if not is_plain and name not in encodings:  # ASCII needs no look at the document
            encodings[name] = str(index.document(name).metadata.get("encoding", "utf-8"))
        yield {
            "number": number,
            "id": passage.id,
            "document_id": name,
            "path": place.path,
            "document_sha256": place.digest,
            "encoding": encodings.get(name, "utf-8"),
            "document_start": place.byte_start,
            "document_end": place.byte_end,
            "is_exact": place.is_exact,
            "pages": list(place.pages),
            "text_start": passage.start,
            "text_end": passage.end,
            "title": passage.title,
            "headings": list(passage.headings),
            "text": passage.text,
            "sha256": digest_text(passage.text),
            "score": round(hit.score, 6),
            "rank": hit.rank,
            "origin": passage.origin.kind,
            "license": passage.origin.license or "",
        }


def _describe_support(answer: Answer) -> dict[str, Any]:
    """Return the probability of what is quoted, and each sentence's support with its bytes."""
    trace = answer.details.get("trace", ())
    steps = [step for step in trace if step["step"] in {"select", "quote"}]
    text = answer.completion.text
    return {
        "probability": steps[-1].get("probability") if steps else None,
        "sentences": [
            {
                "answer_start": _count_bytes(text[: one["start"]]),
                "answer_end": _count_bytes(text[: one["end"]]),
                "status": one["status"],
                "score": one["score"],
                "cited": one["cited"],
            }
            for one in answer.details.get("statements", ())
        ],
    }


def _describe_quote(quote: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    source = answer.hits[quote["number"] - 1].passage.text
    start = _count_bytes(answer.completion.text[: quote["answer_start"]])
    first = _count_bytes(source[: quote["start"]])
    size = _count_bytes(quote["text"])
    return {
        "number": quote["number"],
        "text": quote["text"],
        "answer_start": start,
        "answer_end": start + size,
        "passage_start": first,
        "passage_end": first + size,
        "document_start": quote["byte_start"],
        "document_end": quote["byte_end"],
        "is_exact": quote["is_exact"],
        "short": quote.get("short", ""),
    }


def _locate_marks(
    text: str, answer: Answer, quotes: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, int]]:
    """Yield the citation marks; what looks like one within a quote is none."""
    known = {citation.number for citation in answer.citations}
    ends = {quote["answer_start"] + len(quote["text"]) + 1 for quote in quotes}
    for mark in _CITATION_MARK.finditer(text):
        if int(mark[1]) in known and (not quotes or mark.start() in ends):
            start = _count_bytes(text[: mark.start()])
            yield {
                "number": int(mark[1]),
                "answer_start": start,
                "answer_end": start + len(mark[0]),
            }


def _count_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
