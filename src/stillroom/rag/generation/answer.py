"""Answers from an index: retrieval, generation, citation checks, and their sources.

Nothing is refused or changed because of a label: retrieved text is data whatever it says, and a
pattern can be written around. Hits and answers carry the labels so that a person or a program can
look twice. Does not know: instructions in other words, other languages, or pictures.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from stillroom.rag.generation.citations import CitationStream
from stillroom.rag.generation.prompt import ABSTENTION, PROMPT_VERSION, REQUEST
from stillroom.rag.generation.semantic_cache import build_cache_scope
from stillroom.rag.generation.session import AnswerSession, PromptEchoStripper, PromptLeakFilter
from stillroom.rag.interfaces import (
    ANSWER_STRATEGIES,
    CHECKERS,
    RERANKERS,
    RETRIEVERS,
    Query,
    make_query,
)
from stillroom.rag.observability import (
    Span,
    StageTimes,
    collect_stages,
    collect_warnings,
    count_answer,
    open_span,
    record_answer,
)
from stillroom.rag.settings import AnswerOptions, AnswerSettings
from stillroom.rag.types import format_heading_path, get_readable_text
from stillroom.records import Answer, Citation, Hit, Origin, Sampling
from stillroom.registry import Method
from stillroom.text.unicode import count_invisible, strip_invisible

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.interfaces import AnswerStrategy

__all__ = [
    "CHECK_STEP_PREFIX",
    "CONTENT_FLAGS",
    "SUSPECTED_STEP",
    "AnswerSettings",
    "ask",
    "ask_stream",
    "count_origins",
    "describe_sources",
    "flag_text",
    "get_check_verdict",
    "get_origin_label",
]


_SAMPLING = Sampling(max_new_tokens=128, stop=("\n\n",))


_MAX_NAMED_SOURCES = 2


_CITATIONS = re.compile(r"\[\d+\]")


def ask(
    index: Index,
    model: TextModel,
    question: str | Query,
    *,
    sampling: Sampling = _SAMPLING,
    is_cancelled: Callable[[], bool] | None = None,
    **settings: Unpack[AnswerOptions],
) -> Answer:
    """Answer a question from the passages of an index.

    Args:
        index: What is searched.
        model: What writes.
        question: What is asked; any text, or a Query with the conversation before it.
        sampling: How the answer is drawn.
        is_cancelled: Once true, the answer ends where it is.
        settings: Fields of ``AnswerSettings``.

    Returns:
        The answer. ``details`` hold ``answering`` and its ``trace`` (every step), ``calls`` of the
        model, ``statements`` (each sentence with its support), ``abstained``, ``refusal`` (why) and
        ``nearest`` (the passages named then), ``dropped`` (passages that did not fit), ``left_out``
        (every span that was found and is not shown), ``repeats``, ``sources`` (each passage that
        was shown: place, origin, flags), ``origins`` (how many of those that are cited were made by
        whom), ``dropped_statements``, ``removed_citations``,
        ``broken_links``, ``repeated_sentences``, ``notices`` (what a method had to do otherwise
        than asked),
        ``prompt_tokens``, ``stage_ms`` (what each stage took, in milliseconds), ``cached`` and
        ``index`` (the digest of its state).

    Raises:
        DataError: If k is below 1, the question too long, or the best passage does not fit.
        BackendError: If the model fails.
    """
    *_, answer = _answer(
        index, model, question, AnswerSettings(**settings), sampling, False, is_cancelled
    )
    assert isinstance(answer, Answer)  # noqa: S101  # the last item is one
    return answer


def ask_stream(
    index: Index,
    model: TextModel,
    question: str | Query,
    *,
    sampling: Sampling = _SAMPLING,
    is_cancelled: Callable[[], bool] | None = None,
    **settings: Unpack[AnswerOptions],
) -> Iterator[str | Answer]:
    """Yield pieces of the answer as they are certain, then the Answer; see ``ask``.

    The pieces joined are the answer's text, the same as ``ask`` gives. Closing the iterator stops
    the model.

    Yields:
        Text, and last the Answer.
    """
    return _answer(index, model, question, AnswerSettings(**settings), sampling, True, is_cancelled)


def _answer(
    index: Index,
    model: TextModel,
    question: str | Query,
    asking: AnswerSettings,
    sampling: Sampling,
    is_streamed: bool,
    is_cancelled: Callable[[], bool] | None,
) -> Iterator[str | Answer]:
    begun = time.perf_counter()
    query = make_query(question)
    method = ANSWER_STRATEGIES.build(asking.answering)
    scope = _build_answer_scope(index, model, query, asking, sampling)
    cache = asking.cache
    kept = None if cache is None else cache.find(index, scope, query.text)
    if kept is not None:
        index.note_cached(query.text, kept.hits)
        count_answer(kept, time.perf_counter() - begun)
        yield kept.completion.text
        yield kept
        return
    inquiry = AnswerSession(
        index,
        model,
        query,
        asking,
        sampling,
        method,
        is_streamed=is_streamed,
        is_cancelled=is_cancelled,
    )
    span = open_span("ask")
    try:
        for item in _stream_answer(inquiry, method, span):
            if isinstance(item, Answer):
                record_answer(span, query.text, item.completion.text)
                count_answer(item, time.perf_counter() - begun)
                if cache is not None:
                    cache.keep(index, scope, query.text, item)
            yield item
    finally:
        span.end()


def _stream_answer(
    inquiry: AnswerSession, method: AnswerStrategy, span: Span
) -> Iterator[str | Answer]:
    """Yield checked pieces of what a method answers, then the Answer."""

    def work() -> Iterator[str]:
        inquiry.stand_alone()
        yield from method.answer(inquiry)

    draft, told, times = _AnswerDraft(inquiry), list[str](), StageTimes()
    for raw in _collect_events(work(), told, times, span):
        begun = time.perf_counter()
        piece = draft.feed(raw)
        times.add("check", time.perf_counter() - begun)
        if piece:
            yield piece
    begun = time.perf_counter()
    piece = draft.finish()
    times.add("check", time.perf_counter() - begun)
    if piece:
        yield piece
    yield draft.to_answer(told, times)


def _build_answer_scope(
    index: Index, model: TextModel, query: Query, asking: AnswerSettings, sampling: Sampling
) -> str:
    """Return the digest of all that an answer depends on beside the question's text."""
    if asking.cache is None:
        return ""
    settings = {
        field.name: _to_plain(getattr(asking, field.name))
        for field in fields(asking)
        if field.name != "cache"
    }
    if asking.retriever is None:
        settings["retriever"] = _to_plain(index.default_retriever)
    chosen = [
        RETRIEVERS.build(asking.retriever or index.default_retriever),
        ANSWER_STRATEGIES.build(asking.answering),
        *([RERANKERS.build(asking.reranker)] if asking.reranker is not None else []),
    ]
    settings["moments"] = [one.moment for one in chosen]
    return build_cache_scope(
        index=index.digest,
        scope=index.scope,
        model=model.fingerprint,
        prompt=PROMPT_VERSION,
        query={name: value for name, value in asdict(query).items() if name != "text"},
        sampling=asdict(sampling),
        **settings,
    )


def _to_plain(setting: Any) -> Any:
    """Return a setting as plain values; a method as its name and settings."""
    return setting.model_dump(mode="json") if isinstance(setting, Method) else setting


def _collect_events(
    items: Iterator[str], told: list[str], times: StageTimes, span: Span
) -> Iterator[str]:
    """Yield the items; what methods notice and take while one is made is added up.

    Nothing is collected while the caller has the item: its time and its context are its own.
    """
    try:
        while True:
            with collect_warnings() as heard, collect_stages() as spent, span.current():
                item = next(items, None)
            told += heard
            times.include(spent)
            if item is None:
                return
            yield item
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


class _AnswerDraft:
    """An answer while it is written: checked text, then a refusal where there is no support."""

    def __init__(self, inquiry: AnswerSession) -> None:
        self._inquiry = inquiry
        self._composer: CitationStream | None = None
        self._text = ""
        self._own = PromptLeakFilter()
        self._echoes = PromptEchoStripper(inquiry.query.text, REQUEST)
        self._named: tuple[int, ...] = ()

    def feed(self, raw: str) -> str:
        said = self._echoes.feed(self._own.feed(raw))
        return self._add(self._compose().feed(said)) if said else ""

    def finish(self) -> str:
        """Return the rest of the text, with the refusal if there is one."""
        inquiry = self._inquiry
        if inquiry.shown is None:
            return self._add(self._refuse(ABSTENTION))
        composer = self._compose()
        said = self._echoes.feed(self._own.finish()) + self._echoes.finish()
        rest = self._add(composer.feed(said) + composer.finish())
        if inquiry.completion.finish_reason == "cancelled":
            return rest
        if " ".join(self._text.split()).rstrip(".") == ABSTENTION.rstrip("."):
            inquiry.refusal = "model"
            return rest + self._add(self._refuse(""))
        inquiry.refusal = self._find_refusal(composer)
        if not inquiry.refusal:
            return rest
        space = " " if self._text else ""
        return rest + self._add(space + self._refuse(ABSTENTION))

    def _find_refusal(self, composer: CitationStream) -> str:
        """Return why what was said is no answer; empty where it is one."""
        if composer.is_refused:
            return "unsupported"
        if composer.is_restated:
            return "restated"
        return "" if any(map(str.isalnum, _CITATIONS.sub("", self._text))) else "empty"

    def to_answer(self, told: list[str], times: StageTimes) -> Answer:
        inquiry, composer = self._inquiry, self._composer
        hits = inquiry.shown.hits if inquiry.shown else inquiry.nearest
        numbers = {*self._named, *(composer.numbers if composer else ())}
        citations = []
        for number in sorted(numbers):
            passage = hits[number - 1].passage
            citations.append(Citation(number, passage.id, passage.location, passage.text))
        details = {**self._describe(hits, told), "stage_ms": times.to_json()}
        details["origins"] = count_origins(details["sources"], numbers)
        completion = replace(inquiry.completion, text=self._text)
        return Answer(completion, tuple(citations), hits, details)

    def _describe(self, hits: Sequence[Hit], told: list[str]) -> dict[str, Any]:
        inquiry, shown, composer = self._inquiry, self._inquiry.shown, self._composer
        statements = composer.statements if composer else []
        said = " ".join(self._text.split())
        return {
            "index": inquiry.index.digest,
            "answering": ANSWER_STRATEGIES.build(inquiry.asking.answering).method_name(),
            "trace": inquiry.trace,
            "calls": inquiry.model.calls,
            "prompt_tokens": shown.prompt_tokens if shown else 0,
            "dropped": shown.dropped if shown else 0,
            "left_out": [
                [one.passage_id, one.start, one.end] for one in (shown.left_out if shown else ())
            ],
            "notices": told,
            "repeats": inquiry.repeats,
            "removed_citations": composer.removed if composer else 0,
            "broken_links": composer.broken if composer else 0,
            "repeated_sentences": composer.repeats if composer else 0,
            "abstained": said.startswith(ABSTENTION.rstrip(".")) or bool(inquiry.refusal),
            "refusal": inquiry.refusal,
            "nearest": [hits[number - 1].passage.id for number in self._named],
            "support": dict(sorted(Counter(one.status for one in statements).items())),
            "statements": [statement.to_json() for statement in statements],
            "dropped_statements": [
                {"text": text, "status": one.status, "score": round(one.score, 4)}
                for text, one in (composer.dropped if composer else ())
            ],
            "sources": describe_sources(hits),
            "cached": None,
        }

    def _compose(self) -> CitationStream:
        if self._composer is None:
            inquiry, shown = self._inquiry, self._inquiry.shown
            hits = shown.hits if shown else ()
            checker = CHECKERS.build(inquiry.asking.checker)
            evidence = checker.hold([get_readable_text(hit.passage) for hit in hits], inquiry.index)
            evidence.place([format_heading_path(hit.passage) for hit in hits])
            evidence.ask(inquiry.query.text)
            self._composer = CitationStream(
                evidence,
                len(hits),
                cite=inquiry.asking.cite,
                unsupported=inquiry.asking.unsupported,
            )
        return self._composer

    def _refuse(self, opening: str) -> str:
        """Return a refusal that names the passages which came nearest, best first."""
        inquiry = self._inquiry
        hits = inquiry.shown.hits if inquiry.shown else inquiry.nearest
        order = sorted(range(len(hits)), key=lambda at: (hits[at].rank, at))
        self._named = tuple(sorted(at + 1 for at in order[:_MAX_NAMED_SOURCES]))
        marks = " and ".join(f"[{number}]" for number in self._named)
        if not marks:
            return opening
        one = len(self._named) == 1
        who = f"passage, {marks}, does" if one else f"passages, {marks}, do"
        return f"{opening} The nearest {who} not support an answer."

    def _add(self, text: str) -> str:
        self._text += text
        return text


SUSPECTED_STEP = "forensics.suspected"


"""The method of a link that whoever suspects a medium of being fake adds to its origin's chain."""


CHECK_STEP_PREFIX = "forensics.check."


"""How the method of a link begins that says what a check of the file found."""


def describe_sources(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Return the passages that an answer was written from, numbers as in its citations.

    Args:
        hits: In the order of their numbers.

    Returns:
        For each: ``number``, ``passage_id``, ``score`` and ``rank`` as it was retrieved, ``path``,
        ``byte_start``, ``byte_end``, ``is_exact``, ``pages``, ``origin`` (human, synthetic, unknown
        or suspected-fake), ``license`` and ``flags`` (labels of
        ``stillroom.rag.generation.answer.CONTENT_FLAGS``).
    """
    return [
        {
            "number": number,
            "passage_id": hit.passage.id,
            "score": round(hit.score, 6),
            "rank": hit.rank,
            "path": hit.passage.location.path,
            "byte_start": hit.passage.location.byte_start,
            "byte_end": hit.passage.location.byte_end,
            "is_exact": hit.passage.location.is_exact,
            "pages": list(hit.passage.location.pages),
            "origin": get_origin_label(hit.passage.origin),
            "checked": get_check_verdict(hit.passage.origin),
            "license": hit.passage.origin.license,
            "flags": list(
                flag_text("\n".join([hit.passage.title, *hit.passage.headings, hit.passage.text]))
            ),
        }
        for number, hit in enumerate(hits, 1)
    ]


def count_origins(sources: Sequence[Mapping[str, Any]], cited: Collection[int]) -> dict[str, int]:
    """Return how many sources were made by whom: of those that are cited, or of all if none is.

    Args:
        sources: As ``describe_sources`` gives them.
        cited: The numbers that the answer cites.
    """
    used = [one for one in sources if one["number"] in cited] or sources
    return dict(sorted(Counter(str(one["origin"]) for one in used).items()))


def get_origin_label(origin: Origin) -> str:
    """Return ``suspected-fake`` where the chain says so, else who made it."""
    suspected = any(link.method.startswith(SUSPECTED_STEP) for link in origin.chain)
    return "suspected-fake" if suspected else origin.kind


def get_check_verdict(origin: Origin) -> str:
    """Return what a check of the file found, by the chain; empty where none was made."""
    found = [link.method for link in origin.chain if link.method.startswith(CHECK_STEP_PREFIX)]
    return found[-1].removeprefix(CHECK_STEP_PREFIX) if found else ""


CONTENT_FLAGS: dict[str, str] = {
    "control-tokens": "text that a chat template could read as its own",
    "hidden-text": "characters or markup that a person does not see",
    "instruction": "an order to whoever answers, rather than a statement",
    "planted-citation": "tells which passage is to be cited or trusted",
    "remote-content": "a picture or link in Markdown or HTML that reaches out with data",
    "role-play": "a turn of a conversation, as if system, user or assistant spoke",
    "secrets": "asks for prompts, keys, passwords, or other people's documents",
}


"""Every label, with what it means."""


_INJECTION_VERBS = (
    r"(?:ignore|disregard|forget|override|bypass|skip|discard|drop|set aside|pay no attention to)"
)


_INJECTION_QUALIFIERS = (
    r"(?:previous|prior|above|preceding|earlier|foregoing|other|all|any|every|the|your|these|those"
    r"|system|original|initial)"
)


_INJECTION_OBJECTS = (
    r"(?:instructions?|prompts?|rules?|directions?|guidelines?|orders?|commands?|passages?)"
)


_PATTERNS: dict[str, re.Pattern[str]] = {
    "control-tokens": re.compile(
        r"<\s*[|｜][^<>\n]{0,64}[|｜]\s*>|\[\s*/?\s*(?:INST|SYS|SYSTEM_PROMPT)\s*\]|<<\s*/?\s*SYS\s*>>"
        r"|<\s*/?\s*(?:s|start_of_turn|end_of_turn|system|assistant|tool_call)\s*>"
        r"|<\s*/\s*(?:passage|document|context|data|source)[\w-]*\s*>",
        re.IGNORECASE,
    ),
    "hidden-text": re.compile(
        r"<!--|display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0|opacity\s*:\s*0(?!\.)",
        re.IGNORECASE,
    ),
    "instruction": re.compile(
        rf"\b{_INJECTION_VERBS}\s+(?:\w+\s+){{0,3}}?{_INJECTION_QUALIFIERS}\s+(?:\w+\s+){{0,3}}?{_INJECTION_OBJECTS}\b"
        r"|\b(?:you\s+(?:must|should|will|shall|are\s+to)|always|instead,?|please)\s+(?:now\s+|only\s+)?"
        r"(?:answer|respond|reply|say|output|write|print|repeat|tell\s+the\s+user)\b"
        r"|\b(?:answer|respond|reply|say|output|print|repeat)\s+(?:only\s+|exactly\s+|with\s+){1,3}"
        r"(?:the\s+)?(?:word|phrase|text|sentence|following|[\"'“‘])"
        r"|\bnew\s+(?:instructions?|rules?|task)\s*:|\byou\s+are\s+now\b|\bfrom\s+now\s+on\b"
        r"|\b(?:note|message|instructions?|attention)\s+(?:to|for)\s+(?:the\s+)?"
        r"(?:ai|assistant|model|language\s+model|chatbot|reader\s+model)\b"
        r"|\bif\s+you\s+are\s+an?\s+(?:ai|assistant|language\s+model)\b",
        re.IGNORECASE,
    ),
    "planted-citation": re.compile(
        r"\b(?:cite|trust|quote|use|prefer|rely\s+on|refer\s+to|believe)\s+(?:only\s+)?(?:this\s+|the\s+)?"
        r"(?:passage|source|document|citation)?\s*(?:number\s+)?[\[【［(]\s*\d{1,3}\s*[\])】］]"
        r"|\b(?:all|every)\s+other\s+(?:passages?|sources?|documents?)\s+"
        r"(?:is|are)\s+(?:\w+\s+)?(?:wrong|false|outdated|obsolete|incorrect|retracted)",
        re.IGNORECASE,
    ),
    "remote-content": re.compile(
        r"!\[[^\]]{0,200}\]\s*(?:\(|\[)|\]\(\s*(?:https?:)?//[^)\s]*\?[^)\s]*"
        r"|<\s*(?:img|iframe|script|object|embed|video|audio|link|form)\b[^>]{0,400}"
        r"(?:src|href|data|action)\s*=|javascript:|data:text/html",
        re.IGNORECASE,
    ),
    "role-play": re.compile(
        r"(?:\A|\n)[ \t#>*-]*(?:system|assistant|user|human|ai|developer)\s*(?:prompt\s*)?:\s*\S",
        re.IGNORECASE,
    ),
    "secrets": re.compile(
        r"\b(?:reveal|print|show|repeat|output|send|leak|give|list|disclose|forward)\s+(?:\w+\s+){0,4}?"
        r"(?:system\s+prompt|hidden\s+prompt|initial\s+prompt|passwords?|api\s+keys?|secrets?"
        r"|credentials?|other\s+(?:tenants?|users?|customers?)['’]?s?)\b",
        re.IGNORECASE,
    ),
}


def flag_text(text: str) -> tuple[str, ...]:
    """Return the labels of ``CONTENT_FLAGS`` that hold for a text, sorted.

    Patterns are looked for in the text as people see it, so that a word cut by invisible characters
    is found as well; invisible characters are themselves a label.
    """
    seen = strip_invisible(text)
    found = {name for name, pattern in _PATTERNS.items() if pattern.search(seen)}
    if count_invisible(text):
        found.add("hidden-text")
    return tuple(sorted(found))
