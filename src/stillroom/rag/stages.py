"""What each stage of a question takes: milliseconds always at hand, spans where somebody listens.

``stage`` times its body. Who collects gets the times (an answer keeps them in its details,
``stillroom rag search --timings`` shows them); a program that has set up OpenTelemetry gets a
span, with the attribute names of the GenAI conventions and of OpenInference side by side, and the
time in a histogram (``metrics``). Where neither is so, a stage costs a microsecond, and
OpenTelemetry is never imported.

No text of documents, questions or answers leaves by a span: ids, scores, counts and digests do.
STILLROOM_TRACE_CONTENT=1 in the environment adds the texts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from stillroom.rag.metrics import count_stage, is_metered

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index import Index
    from stillroom.rag.method import Query, Reranker
    from stillroom.records import Completion, Hit, Prompt

__all__ = [
    "CONTENT",
    "Span",
    "StageName",
    "StageTimes",
    "add_time",
    "collect_stages",
    "describe_hits",
    "open_span",
    "rerank_hits",
    "stage",
    "tell_asked",
    "tell_retrieved",
    "tell_written",
]

StageName = Literal[
    "ask",
    "retrieve",
    "transform",
    "embed",
    "keyword",
    "dense",
    "sparse",
    "tokens",
    "fuse",
    "rerank",
    "grade",
    "prompt",
    "generate",
    "check",
]

CONTENT = "STILLROOM_TRACE_CONTENT"
_LIBRARY = "stillroom.rag"
_KINDS: Mapping[StageName, tuple[str, str]] = {
    "ask": ("CHAIN", "invoke_workflow"),
    "retrieve": ("RETRIEVER", "retrieval"),
    "transform": ("CHAIN", ""),
    "embed": ("EMBEDDING", "embeddings"),
    "keyword": ("RETRIEVER", "retrieval"),
    "dense": ("RETRIEVER", "retrieval"),
    "sparse": ("RETRIEVER", "retrieval"),
    "tokens": ("RETRIEVER", "retrieval"),
    "fuse": ("CHAIN", ""),
    "rerank": ("RERANKER", ""),
    "grade": ("EVALUATOR", ""),
    "prompt": ("CHAIN", ""),
    "generate": ("LLM", "chat"),
    "check": ("GUARDRAIL", ""),
}
_MOST_DOCUMENTS = 50


class StageTimes:
    """Milliseconds and runs by stage, in the order in which stages first ended.

    A stage within another counts in both: ``retrieve`` holds ``keyword``.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.milliseconds: dict[str, float] = {}
        self.runs: dict[str, int] = {}

    def add(self, name: str, seconds: float) -> None:
        """Count one run of a stage."""
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + seconds * 1000
        self.runs[name] = self.runs.get(name, 0) + 1

    def include(self, other: StageTimes) -> None:
        """Add what another has counted."""
        for name, value in other.milliseconds.items():
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + value
            self.runs[name] = self.runs.get(name, 0) + other.runs[name]

    def to_json(self) -> dict[str, float]:
        """Return milliseconds by stage, rounded to the microsecond."""
        return {name: round(value, 3) for name, value in self.milliseconds.items()}


class Span:
    """What a stage may say of itself; ``is_heard`` tells whether saying is worth the work."""

    __slots__ = ("_span",)

    def __init__(self, span: Any = None) -> None:
        """Stand for a span, or for none."""
        self._span = span

    @property
    def is_heard(self) -> bool:
        """Whether anybody records this span."""
        return self._span is not None and bool(self._span.is_recording())

    @property
    def wants_content(self) -> bool:
        """Whether texts may be told, too."""
        return self.is_heard and os.environ.get(CONTENT, "") not in {"", "0"}

    @contextmanager
    def current(self) -> Iterator[Span]:
        """Make spans of the body parts of this one."""
        if self._span is None:
            yield self
            return
        with sys.modules["opentelemetry.trace"].use_span(self._span, end_on_exit=False):
            yield self

    def end(self) -> None:
        """End a span that ``open_span`` began."""
        if self._span is not None:
            self._span.end()

    def tell(self, **attributes: Any) -> None:
        """Set attributes; two underscores in a name stand for a dot."""
        if self.is_heard:
            for name, value in attributes.items():
                self._span.set_attribute(name.replace("__", "."), value)

    def tell_all(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes by their full names."""
        if self.is_heard:
            for name, value in attributes.items():
                self._span.set_attribute(name, value)


_SILENT = Span()
_NOBODY = nullcontext(_SILENT)  # shared: it keeps nothing
_TIMES: ContextVar[StageTimes | None] = ContextVar("stillroom_rag_stages", default=None)


@contextmanager
def collect_stages() -> Iterator[StageTimes]:
    """Yield the times of the body's stages, this thread's alone; outer collectors get them too."""
    outer, times = _TIMES.get(), StageTimes()
    token = _TIMES.set(times)
    try:
        yield times
    finally:
        _TIMES.reset(token)
        if outer is not None:
            outer.include(times)


def stage(name: StageName) -> AbstractContextManager[Span]:
    """Time the body as a stage, and make a span of it where OpenTelemetry is set up.

    Args:
        name: Which stage.

    Returns:
        A context that gives what the body may tell of itself.
    """
    times, tracer = _TIMES.get(), _tracer()
    is_unheard = times is None and tracer is None and not is_metered()
    return _NOBODY if is_unheard else _run(name, times, tracer)


@contextmanager
def _run(name: StageName, times: StageTimes | None, tracer: Any) -> Iterator[Span]:
    begun = time.perf_counter()
    try:
        if tracer is None:
            yield _SILENT
        else:
            with tracer.start_as_current_span(f"rag.{name}") as span:
                yield _named(Span(span), name)
    finally:
        spent = time.perf_counter() - begun
        if times is not None:
            times.add(name, spent)
        count_stage(name, spent)


def add_time(name: StageName, seconds: float) -> None:
    """Count a part of a stage that has no body, to whoever collects."""
    times = _TIMES.get()
    if times is not None:
        times.add(name, seconds)


def open_span(name: StageName) -> Span:
    """Begin a span that the caller ends, for what stops and goes on as a stream does.

    It is part of the span that is current now, and not current itself: see ``Span.current``.
    """
    tracer = _tracer()
    return _SILENT if tracer is None else _named(Span(tracer.start_span(f"rag.{name}")), name)


def describe_hits(
    hits: Sequence[Hit], *, prefix: str = "retrieval.documents", with_text: bool = False
) -> dict[str, Any]:
    """Return the attributes that list hits: ids and scores, the first fifty; texts if asked.

    Args:
        hits: Best first.
        prefix: OpenInference's, as ``reranker.output_documents``.
        with_text: Put the passages' texts in, too.
    """
    told: dict[str, Any] = {"stillroom.hits": len(hits)}
    for at, hit in enumerate(hits[:_MOST_DOCUMENTS]):
        told[f"{prefix}.{at}.document.id"] = hit.passage.id
        told[f"{prefix}.{at}.document.score"] = hit.score
        if with_text:
            told[f"{prefix}.{at}.document.content"] = hit.passage.text
    if prefix == "retrieval.documents":
        rows = [{"id": hit.passage.id, "score": hit.score} for hit in hits[:_MOST_DOCUMENTS]]
        told["gen_ai.retrieval.documents"] = json.dumps(rows)
    return told


def tell_retrieved(span: Span, query: str, hits: Sequence[Hit], index_digest: str) -> None:
    """Let a span tell what a query found; its text and the passages' only where that is asked."""
    if not span.is_heard:
        return
    span.tell(gen_ai__data_source__id=index_digest)
    span.tell_all(describe_hits(hits, with_text=span.wants_content))
    if span.wants_content:
        span.tell(input__value=query, gen_ai__retrieval__query__text=query)


def tell_written(span: Span, model: TextModel, prompt: Prompt, completion: Completion) -> None:
    """Let a span tell what a model wrote: its tokens always, the texts where that is asked."""
    if not span.is_heard:
        return
    spent = {"prompt": completion.prompt_tokens, "completion": completion.completion_tokens}
    span.tell(
        gen_ai__request__model=model.name,
        gen_ai__usage__input_tokens=spent["prompt"],
        gen_ai__usage__output_tokens=spent["completion"],
        gen_ai__response__finish_reasons=[completion.finish_reason],
        llm__model_name=model.name,
        llm__token_count__prompt=spent["prompt"],
        llm__token_count__completion=spent["completion"],
    )
    if span.wants_content:
        span.tell(input__value=json.dumps(prompt.to_json()), output__value=completion.text)


def tell_asked(span: Span, question: str, answer: str) -> None:
    """Let the span of a whole answer tell question and answer, where that is asked."""
    if span.wants_content:
        span.tell(input__value=question, output__value=answer)


def rerank_hits(
    reranker: Reranker, query: Query, hits: Sequence[Hit], index: Index, model: TextModel | None
) -> list[Hit]:
    """Return the hits in a reranker's order, as a stage of its own."""
    with stage("rerank") as span:
        found = reranker.rerank(query, hits, index, model)
        if span.is_heard:
            span.tell(reranker__model_name=reranker.method_name(), reranker__top_k=len(found))
            for side, listed in (("input", hits), ("output", found)):
                span.tell_all(describe_hits(listed, prefix=f"reranker.{side}_documents"))
            if span.wants_content:
                span.tell(reranker__query=query.text)
        return found


def _named(span: Span, name: StageName) -> Span:
    kind, operation = _KINDS[name]
    span.tell(openinference__span__kind=kind, gen_ai__provider__name="stillroom")
    if operation:
        span.tell(gen_ai__operation__name=operation)
    return span


def _tracer() -> Any:
    """Return a tracer if this process has set up OpenTelemetry; importing it is the program's."""
    module = sys.modules.get("opentelemetry.trace")
    if module is None or "opentelemetry.sdk.trace" not in sys.modules:
        return None
    return module.get_tracer(_LIBRARY)
