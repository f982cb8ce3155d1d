"""Answering from an index: a method finds, judges and reads, and every sentence is checked."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from stillroom.rag.asking import Asking, AskSettings
from stillroom.rag.composing import Composer
from stillroom.rag.echoes import EchoFilter, PromptFilter
from stillroom.rag.inquiry import Inquiry
from stillroom.rag.method import ANSWERING, CHECKERS, RERANKERS, RETRIEVERS, Query, make_query
from stillroom.rag.metrics import count_answer
from stillroom.rag.notices import collect_notices
from stillroom.rag.prefixes import place_of, readable_text
from stillroom.rag.prompting import ABSTENTION, PROMPT_VERSION, REQUEST
from stillroom.rag.semantic_cache import scope_of
from stillroom.rag.sources import count_origins, describe_sources
from stillroom.rag.stages import Span, StageTimes, collect_stages, open_span, tell_asked
from stillroom.records import Answer, Citation, Hit, Sampling
from stillroom.registry import Method

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index import Index
    from stillroom.rag.method import Answering

__all__ = ["Asking", "ask", "ask_stream"]

_SAMPLING = Sampling(max_new_tokens=128, stop=("\n\n",))
_NAMED = 2
_MARKS = re.compile(r"\[\d+\]")


def ask(
    index: Index,
    model: TextModel,
    question: str | Query,
    *,
    sampling: Sampling = _SAMPLING,
    is_cancelled: Callable[[], bool] | None = None,
    **settings: Unpack[AskSettings],
) -> Answer:
    """Answer a question from the passages of an index.

    Args:
        index: What is searched.
        model: What writes.
        question: What is asked; any text, or a Query with the conversation before it.
        sampling: How the answer is drawn.
        is_cancelled: Once true, the answer ends where it is.
        settings: Fields of ``Asking``.

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
    *_, answer = _answer(index, model, question, Asking(**settings), sampling, False, is_cancelled)
    assert isinstance(answer, Answer)  # noqa: S101  # the last item is one
    return answer


def ask_stream(
    index: Index,
    model: TextModel,
    question: str | Query,
    *,
    sampling: Sampling = _SAMPLING,
    is_cancelled: Callable[[], bool] | None = None,
    **settings: Unpack[AskSettings],
) -> Iterator[str | Answer]:
    """Yield pieces of the answer as they are certain, then the Answer; see ``ask``.

    The pieces joined are the answer's text, the same as ``ask`` gives. Closing the iterator stops
    the model.

    Yields:
        Text, and last the Answer.
    """
    return _answer(index, model, question, Asking(**settings), sampling, True, is_cancelled)


def _answer(
    index: Index,
    model: TextModel,
    question: str | Query,
    asking: Asking,
    sampling: Sampling,
    is_streamed: bool,
    is_cancelled: Callable[[], bool] | None,
) -> Iterator[str | Answer]:
    begun = time.perf_counter()
    query = make_query(question)
    method = ANSWERING.build(asking.answering)
    scope = _scope_of(index, model, query, asking, sampling)
    cache = asking.cache
    kept = None if cache is None else cache.find(index, scope, query.text)
    if kept is not None:
        index.note_cached(query.text, kept.hits)
        count_answer(kept, time.perf_counter() - begun)
        yield kept.completion.text
        yield kept
        return
    inquiry = Inquiry(
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
        for item in _work(inquiry, method, span):
            if isinstance(item, Answer):
                tell_asked(span, query.text, item.completion.text)
                count_answer(item, time.perf_counter() - begun)
                if cache is not None:
                    cache.keep(index, scope, query.text, item)
            yield item
    finally:
        span.end()


def _work(inquiry: Inquiry, method: Answering, span: Span) -> Iterator[str | Answer]:
    """Yield checked pieces of what a method answers, then the Answer."""

    def work() -> Iterator[str]:
        inquiry.stand_alone()
        yield from method.answer(inquiry)

    draft, told, times = _Draft(inquiry), list[str](), StageTimes()
    for raw in _listen(work(), told, times, span):
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


def _scope_of(
    index: Index, model: TextModel, query: Query, asking: Asking, sampling: Sampling
) -> str:
    """Return the digest of all that an answer depends on beside the question's text."""
    if asking.cache is None:
        return ""
    settings = {
        field.name: _plain(getattr(asking, field.name))
        for field in fields(asking)
        if field.name != "cache"
    }
    if asking.retriever is None:
        settings["retriever"] = _plain(index.default_retriever)
    chosen = [
        RETRIEVERS.build(asking.retriever or index.default_retriever),
        ANSWERING.build(asking.answering),
        *([RERANKERS.build(asking.reranker)] if asking.reranker is not None else []),
    ]
    settings["moments"] = [one.moment for one in chosen]
    return scope_of(
        index=index.digest,
        scope=index.scope,
        model=model.fingerprint,
        prompt=PROMPT_VERSION,
        query={name: value for name, value in asdict(query).items() if name != "text"},
        sampling=asdict(sampling),
        **settings,
    )


def _plain(setting: Any) -> Any:
    """Return a setting as plain values; a method as its name and settings."""
    return setting.model_dump(mode="json") if isinstance(setting, Method) else setting


def _listen(items: Iterator[str], told: list[str], times: StageTimes, span: Span) -> Iterator[str]:
    """Yield the items; what methods notice and take while one is made is added up.

    Nothing is collected while the caller has the item: its time and its context are its own.
    """
    try:
        while True:
            with collect_notices() as heard, collect_stages() as spent, span.current():
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


class _Draft:
    """An answer while it is written: checked text, then a refusal where there is no support."""

    def __init__(self, inquiry: Inquiry) -> None:
        self._inquiry = inquiry
        self._composer: Composer | None = None
        self._text = ""
        self._own = PromptFilter()
        self._echoes = EchoFilter(inquiry.query.text, REQUEST)
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

    def _find_refusal(self, composer: Composer) -> str:
        """Return why what was said is no answer; empty where it is one."""
        if composer.is_refused:
            return "unsupported"
        if composer.is_restated:
            return "restated"
        return "" if any(map(str.isalnum, _MARKS.sub("", self._text))) else "empty"

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
            "answering": ANSWERING.build(inquiry.asking.answering).method_name(),
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

    def _compose(self) -> Composer:
        if self._composer is None:
            inquiry, shown = self._inquiry, self._inquiry.shown
            hits = shown.hits if shown else ()
            checker = CHECKERS.build(inquiry.asking.checker)
            evidence = checker.hold([readable_text(hit.passage) for hit in hits], inquiry.index)
            evidence.place([place_of(hit.passage) for hit in hits])
            evidence.ask(inquiry.query.text)
            self._composer = Composer(
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
        self._named = tuple(sorted(at + 1 for at in order[:_NAMED]))
        marks = " and ".join(f"[{number}]" for number in self._named)
        if not marks:
            return opening
        one = len(self._named) == 1
        who = f"passage, {marks}, does" if one else f"passages, {marks}, do"
        return f"{opening} The nearest {who} not support an answer."

    def _add(self, text: str) -> str:
        self._text += text
        return text
