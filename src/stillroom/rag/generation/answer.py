"""Answers from an index (``ask``): generation, abstention and sources."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from stillroom.rag.generation.cited_sentences import CitationStream, CitedSentence
from stillroom.rag.generation.content_flags import flag_text
from stillroom.rag.generation.prompt import PROMPT_VERSION, REQUEST
from stillroom.rag.generation.refusals import AbstentionTranslator, is_abstention, is_declined
from stillroom.rag.generation.semantic_cache import build_cache_scope
from stillroom.rag.generation.session import (
    AnswerSession,
    JudgedAnswer,
)
from stillroom.rag.generation.stream_filters import PromptEchoStripper, PromptLeakFilter
from stillroom.rag.interfaces import (
    ANSWER_STRATEGIES,
    CHECKERS,
    DEFAULT_RETRIEVER,
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
    open_span,
    record_answer,
)
from stillroom.rag.settings import AnswerSettings, read_answer_settings
from stillroom.rag.types import format_heading_path, get_readable_text
from stillroom.records import Answer, Citation, Hit, Origin, Sampling
from stillroom.registry import Method

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.interfaces import AnswerStrategy

__all__ = [
    "ANSWER_SAMPLING",
    "SUSPECTED_STEP",
    "AnswerSettings",
    "ask",
    "ask_stream",
    "count_origins",
    "describe_sources",
    "get_origin_label",
]


ANSWER_SAMPLING = Sampling(max_new_tokens=128, stop=("\n\n",))
"""Sampling of an answer unless the caller gives another."""
_MAX_NAMED_SOURCES = 2
_CITATIONS = re.compile(r"\[\d+\]")


def ask(
    index: Index,
    model: TextModel,
    question: str | Query,
    *,
    sampling: Sampling = ANSWER_SAMPLING,
    is_cancelled: Callable[[], bool] | None = None,
    judged: JudgedAnswer | None = None,
    **settings: Any,
) -> Answer:
    """Answer a question from the passages of an index.

    Args:
        index: Index to search.
        model: Model that generates the answer.
        question: A text, or a Query with the preceding conversation.
        sampling: Sampling settings of the answer.
        is_cancelled: Polled while generating; once true, the answer ends there.
        judged: What people judged of this question before, which quotes follow; not where a
            transform rewrites it from the conversation.
        settings: Fields of ``AnswerSettings``.

    Returns:
        The answer. ``details`` has ``answering`` (the strategy) and its ``trace`` (every step),
            ``calls`` of the model, ``statements`` (each sentence with its support), ``abstained``,
            ``refusal`` (the code of the reason), ``refusal_note`` (the reason in words, in the
            language of the question), ``nearest`` (the passages named in a refusal), ``dropped``
            (number of passages that did not fit), ``left_out`` (retrieved spans that are not
            shown), ``repeats``, ``sources`` (each shown passage: location, origin, flags),
            ``quotes`` (verbatim spans, of the strategy ``quote``: ``start`` in the passage,
            ``answer_start`` in the text, ``short`` and ``short_start`` of a short answer,
            ``soft_breaks``, ``continues`` where the next has its citation), ``judged`` (the
            person's judgment that the answer follows, if any), ``answered_by`` (fingerprint of
            its reader, or the name of the model that wrote), ``input_digest`` (of the prompt, or
            of the candidates that its reader read),
            ``origins`` (number of cited sources by kind of origin), ``dropped_statements``,
            ``removed_citations``, ``broken_links``, ``repeated_sentences``, ``notices`` (warnings
            of methods, such as fallbacks), ``prompt_tokens``, ``stage_ms`` (time per stage, in
            milliseconds), ``cached`` and ``index`` (the digest of its state).

    Raises:
        DataError: If k is below 1, the question is too long, or the best passage does not fit.
        RecipeError: If a method is unknown, or another setting is out of bounds.
        BackendError: If the model fails.
    """
    asking = read_answer_settings(settings)
    *_, answer = _answer(index, model, question, asking, sampling, False, is_cancelled, judged)
    assert isinstance(answer, Answer)  # noqa: S101  # the last item is the Answer
    return answer


def ask_stream(
    index: Index,
    model: TextModel,
    question: str | Query,
    *,
    sampling: Sampling = ANSWER_SAMPLING,
    is_cancelled: Callable[[], bool] | None = None,
    judged: JudgedAnswer | None = None,
    **settings: Any,
) -> Iterator[str | Answer]:
    """Yield pieces of the answer as soon as they are final, then the Answer; see ``ask``.

    The concatenated pieces are the answer's text, identical to that of ``ask``. Closing the
    iterator stops the model.
    """
    asking = read_answer_settings(settings)
    return _answer(index, model, question, asking, sampling, True, is_cancelled, judged)


def _answer(
    index: Index,
    model: TextModel,
    question: str | Query,
    asking: AnswerSettings,
    sampling: Sampling,
    is_streamed: bool,
    is_cancelled: Callable[[], bool] | None,
    judged: JudgedAnswer | None,
) -> Iterator[str | Answer]:
    query = make_query(question)
    if query.history and asking.transform is not None:
        judged = None  # the same words may mean something else after other turns
    method = ANSWER_STRATEGIES.build(asking.answering)
    scope = _build_answer_scope(index, model, query, asking, sampling, judged)
    cache = asking.cache
    cached_answer = None if cache is None else cache.find(index, scope, query.text)
    if cached_answer is not None:
        index.log_query(query.text, cached_answer.hits, kind="cached")
        yield cached_answer.completion.text
        yield cached_answer
        return
    session = AnswerSession(
        index,
        model,
        query,
        asking,
        sampling,
        method,
        is_streamed=is_streamed,
        is_cancelled=is_cancelled,
        judged=judged,
    )
    span = open_span("ask")
    try:
        for item in _stream_answer(session, method, span):
            if isinstance(item, Answer):
                record_answer(span, query.text, item.completion.text)
                if cache is not None:
                    cache.keep(index, scope, query.text, item)
            yield item
    finally:
        span.end()


def _stream_answer(
    session: AnswerSession, method: AnswerStrategy, span: Span
) -> Iterator[str | Answer]:
    """Yield checked pieces of a strategy's answer, then the Answer."""

    def work() -> Generator[str]:
        if session.prepare_question():
            yield from method.answer(session)

    draft, warnings, times = _AnswerDraft(session), list[str](), StageTimes()

    def check(step: Callable[[], str]) -> str:
        started = time.perf_counter()
        with collect_warnings() as new_warnings:
            piece = step()
        warnings.extend(new_warnings)
        times.add("check", time.perf_counter() - started)
        return piece

    for raw in _collect_events(work(), warnings, times, span):
        if piece := check(partial(draft.feed, raw)):
            yield piece
    if piece := check(draft.finish):
        yield piece
    yield draft.to_answer(warnings, times)


def _build_answer_scope(
    index: Index,
    model: TextModel,
    query: Query,
    asking: AnswerSettings,
    sampling: Sampling,
    judged: JudgedAnswer | None,
) -> str:
    """Return the digest of everything an answer depends on, apart from the question's text."""
    if asking.cache is None:
        return ""
    settings = {
        name: _to_plain(getattr(asking, name))
        for name in AnswerSettings.model_fields
        if name != "cache"
    }
    retriever = RETRIEVERS.build(asking.retriever or DEFAULT_RETRIEVER)
    if asking.retriever is None:
        settings["retriever"] = _to_plain(retriever)
    strategy = ANSWER_STRATEGIES.build(asking.answering)
    is_helped = asking.transform is not None or asking.reranker is not None
    methods = [
        retriever,
        strategy,
        *([RERANKERS.build(asking.reranker)] if asking.reranker is not None else []),
        *([CHECKERS.build(asking.checker)] if strategy.needs_model else []),
    ]
    settings["moments"] = [method.moment for method in methods]
    if judged is not None:  # what was cached before the judgment is no answer any more
        settings["judged"] = asdict(judged)
    return build_cache_scope(
        index=index.digest,
        scope=index.scope,
        model=model.fingerprint if strategy.needs_model or is_helped else "",
        prompt=PROMPT_VERSION,
        query={name: value for name, value in asdict(query).items() if name != "text"},
        sampling=asdict(sampling),
        **settings,
    )


def _to_plain(setting: Any) -> Any:
    """Convert a setting to plain values; a method to its name and settings."""
    return setting.model_dump(mode="json") if isinstance(setting, Method) else setting


def _collect_events(
    items: Generator[str], warnings: list[str], times: StageTimes, span: Span
) -> Iterator[str]:
    """Yield the items, and collect warnings and stage times emitted while each is produced.

    Nothing is collected while the caller holds an item: its time and context are the caller's.
    """
    try:
        while True:
            with collect_warnings() as new_warnings, collect_stages() as spent, span.current():
                item = next(items, None)
            warnings += new_warnings
            times.include(spent)
            if item is None:
                return
            yield item
    finally:
        items.close()


class _AnswerDraft:
    """An answer in progress: checked text, then a refusal if there is no support."""

    def __init__(self, inquiry: AnswerSession) -> None:
        self._session = inquiry
        self._stream: CitationStream | None = None
        self._text = ""
        self._leak_filter = PromptLeakFilter()
        self._echo_stripper = PromptEchoStripper(inquiry.query.text, REQUEST)
        self._nearest: tuple[int, ...] = ()
        self._translator = AbstentionTranslator(inquiry.query.text)

    def feed(self, raw: str) -> str:
        if self._session.quotes:  # stands in a document: no echo, and not to be changed
            return self._append(raw)
        text = self._translator.feed(self._echo_stripper.feed(self._leak_filter.feed(raw)))
        return self._append(self._open_stream().feed(text)) if text else ""

    def finish(self) -> str:
        """Return the remaining text, with the refusal if there is one."""
        session = self._session
        if session.quotes:
            if session.refusal:
                self._nearest = tuple(self._list_cited())
            return ""
        if session.shown is None:
            opening = self._translator.wording.open_refusal(session.refusal)
            return self._append(self._build_refusal(opening))
        composer = self._open_stream()
        text = self._echo_stripper.feed(self._leak_filter.finish()) + self._echo_stripper.finish()
        text = self._translator.feed(text) + self._translator.finish()
        remainder = self._append(composer.feed(text) + composer.finish())
        if session.completion.finish_reason == "cancelled":
            return remainder
        if is_abstention(self._text):
            session.refusal = "model"
            return remainder + self._append(self._build_refusal(""))
        session.refusal = self._find_refusal(composer)
        if not session.refusal:
            return remainder
        space = " " if self._text else ""
        refusal = self._build_refusal(self._translator.wording.refusal)
        return remainder + self._append(space + refusal)

    def _find_refusal(self, composer: CitationStream) -> str:
        """Return the reason why the text is not an answer; empty if it is one."""
        if composer.is_refused:
            return "unsupported"
        if composer.is_restated:
            return "restated"
        return "" if any(map(str.isalnum, _CITATIONS.sub("", self._text))) else "empty"

    def to_answer(self, warnings: list[str], times: StageTimes) -> Answer:
        session, cited, hits = self._session, self._list_cited(), self._hits
        hits = tuple(hits[place] for place in dict.fromkeys([*cited, *range(len(hits))]))
        details = {**self._describe(hits, warnings), "stage_ms": times.to_json()}
        details["origins"] = count_origins(details["sources"], range(1, len(cited) + 1))
        completion = replace(session.completion, text=self._text)
        return Answer(completion, _resolve_citations(hits[: len(cited)]), hits, details)

    def _describe(self, hits: Sequence[Hit], warnings: list[str]) -> dict[str, Any]:
        session, shown, composer = self._session, self._session.shown, self._stream
        abstained = bool(session.refusal) or (not session.quotes and is_declined(self._text))
        note = self._translator.wording.describe_reason(session.refusal) if abstained else ""
        stated = () if abstained else session.quotes  # the nearest sentences state nothing
        quoted = [_state_quote(quote, self._text) for quote in stated]
        statements = composer.statements if composer else quoted
        return {
            "index": session.index.digest,
            "answered_by": session.completion.model,
            "answering": ANSWER_STRATEGIES.build(session.asking.answering).method_name(),
            "input_digest": session.input_digest,
            "trace": session.trace,
            "calls": session.model.calls,
            "prompt_tokens": shown.prompt_tokens if shown else 0,
            "dropped": shown.dropped if shown else 0,
            "left_out": [
                [part.passage_id, part.start, part.end]
                for part in (shown.left_out if shown else ())
            ],
            "notices": warnings,
            "repeats": session.repeats,
            "removed_citations": composer.removed if composer else 0,
            "broken_links": composer.broken if composer else 0,
            "repeated_sentences": composer.repeats if composer else 0,
            "abstained": abstained,
            "refusal": session.refusal,
            "refusal_note": note,
            "nearest": [self._hits[place].passage.id for place in self._nearest],
            "support": dict(sorted(Counter(statement.status for statement in statements).items())),
            "statements": [statement.to_json() for statement in statements],
            "dropped_statements": [
                {"text": sentence, "status": statement.status, "score": round(statement.score, 4)}
                for sentence, statement in (composer.dropped if composer else ())
            ],
            "sources": describe_sources(hits, session.quotes),
            **({"quotes": session.quotes} if session.quotes else {}),
            **({"judged": session.followed.to_json()} if session.followed else {}),
            "cached": None,
        }

    def _open_stream(self) -> CitationStream:
        if self._stream is None:
            session, shown = self._session, self._session.shown
            hits = shown.hits if shown else ()
            checker = CHECKERS.build(session.asking.checker)
            evidence = checker.hold([get_readable_text(hit.passage) for hit in hits], session.index)
            evidence.set_headings([format_heading_path(hit.passage) for hit in hits])
            evidence.set_question(session.query.text)
            self._stream = CitationStream(
                evidence,
                len(hits),
                cite=session.asking.cite,
                unsupported=session.asking.unsupported,
            )
        return self._stream

    def _build_refusal(self, opening: str) -> str:
        """Return a refusal that names the nearest passages, best first, and what was read."""
        hits = self._hits
        order = sorted(range(len(hits)), key=lambda place: (hits[place].rank, place))
        self._nearest = tuple(order[:_MAX_NAMED_SOURCES])
        cited = self._list_cited()
        numbers = tuple(sorted(cited.index(place) + 1 for place in self._nearest))
        nearest = self._translator.wording.describe_nearest(numbers)
        session = self._session
        reading = session.describe_reading(is_refused=True)
        more = filter(None, (nearest, session.describe_remarks(), reading))
        return " ".join([opening, *more])  # an empty opening has been given already

    @property
    def _hits(self) -> Sequence[Hit]:
        return self._session.shown.hits if self._session.shown else self._session.nearest

    def _list_cited(self) -> list[int]:
        """Return the places in the hits of what the answer numbers 1, 2, 3, in this order."""
        quoted = (quote["number"] for quote in self._session.quotes)
        numbers = self._stream.numbers if self._stream else quoted
        return list(dict.fromkeys([*(number - 1 for number in numbers), *self._nearest]))

    def _append(self, text: str) -> str:
        self._text += text
        return text


def _resolve_citations(hits: Sequence[Hit]) -> tuple[Citation, ...]:
    """Return the citations of the cited hits, with their locations (byte spans)."""
    parts = (hit.passage for hit in hits)
    return tuple(Citation(n, part.id, part.location, part.text) for n, part in enumerate(parts, 1))


def _state_quote(quote: Mapping[str, Any], text: str) -> CitedSentence:
    """Return a quote as a sentence, with its citation if that follows in the answer's text.

    Its passage supports it by construction.
    """
    start, number = quote["answer_start"], quote["number"]
    end, mark = start + len(quote["text"]), f" [{number}]"
    end += len(mark) if text.startswith(mark, end) else 0
    return CitedSentence(start, end, "supported", 1.0, (number,))


SUSPECTED_STEP = "forensics.suspected"
"""Prefix of the origin link's method by which a medium is reported as a suspected fake."""
_CHECK_STEP_PREFIX = "forensics.check."
"""Prefix of the origin link's method that records the verdict of a file check."""
_CREDENTIAL_STEP_PREFIX = "c2pa."
"""Prefix of the origin link's method that records the state of a text's content credential."""
_STATEMENT_STEP_PREFIX = "statement."
"""Prefix of the origin link's method that records an unsigned statement of a file."""


def describe_sources(
    hits: Sequence[Hit], quotes: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Return the passages that an answer was generated from, numbered as in its citations.

    Returns:
        For each: ``number``, ``passage_id``, ``score`` and ``rank`` of the retrieval, ``path``,
            ``title`` (of the document; empty without one), ``headings`` (of its section and those
            around it, the highest first; of what is quoted first, where something is; passages
            go on below a later heading), ``byte_start``,
            ``byte_end``, ``is_exact``, ``pages``, ``origin`` (human, synthetic, unknown or
            suspected-fake), ``checked`` (verdict of a file check), ``license`` and ``flags``
            (keys of ``CONTENT_FLAGS``).
    """
    quoted = {quote["number"]: quote["headings"] for quote in reversed(quotes)}
    return [
        {
            "number": number,
            "passage_id": hit.passage.id,
            "score": round(hit.score, 6),
            "rank": hit.rank,
            "path": hit.passage.location.path,
            "title": hit.passage.title,
            "headings": list(quoted.get(number, hit.passage.headings)),
            "byte_start": hit.passage.location.byte_start,
            "byte_end": hit.passage.location.byte_end,
            "is_exact": hit.passage.location.is_exact,
            "pages": list(hit.passage.location.pages),
            "origin": get_origin_label(hit.passage.origin),
            "checked": _get_check_verdict(hit.passage.origin),
            "license": hit.passage.origin.license,
            "flags": list(
                flag_text("\n".join([hit.passage.title, *hit.passage.headings, hit.passage.text]))
            ),
        }
        for number, hit in enumerate(hits, 1)
    ]


def count_origins(sources: Sequence[Mapping[str, Any]], cited: Collection[int]) -> dict[str, int]:
    """Count the sources by kind of origin: the cited ones, or all if none is cited."""
    used = [source for source in sources if source["number"] in cited] or sources
    return dict(sorted(Counter(str(source["origin"]) for source in used).items()))


def get_origin_label(origin: Origin) -> str:
    """Return ``suspected-fake`` if the chain reports it, else the kind of origin."""
    suspected = any(link.method.startswith(SUSPECTED_STEP) for link in origin.chain)
    return "suspected-fake" if suspected else origin.kind


def _get_check_verdict(origin: Origin) -> str:
    """Return the verdict of the last file check in the chain; empty if there was none.

    That of a text's content credential is its state, as ``credential-changed``; that of unsigned
    statements is ``stated``, unless something else was found.
    """
    verdicts = [
        start + link.method.removeprefix(prefix)
        for link in origin.chain
        for prefix, start in ((_CHECK_STEP_PREFIX, ""), (_CREDENTIAL_STEP_PREFIX, "credential-"))
        if link.method.startswith(prefix)
    ]
    if any(link.method.startswith(_STATEMENT_STEP_PREFIX) for link in origin.chain):
        verdicts = verdicts or ["stated"]
    return verdicts[-1] if verdicts else ""
