"""Tracing: stage timings, OpenTelemetry spans, and warnings of methods.

``stage`` times its body. ``collect_stages`` collects the times (an answer keeps them in its
details, ``stillroom rag search --timings`` shows them). A program that has set up OpenTelemetry
also gets a span, with the attribute names of the GenAI conventions and of OpenInference. Without
either, a stage costs a microsecond, and OpenTelemetry is never imported.

Spans carry ids, scores, counts and digests, but no text of documents, questions or answers, unless
STILLROOM_TRACE_CONTENT=1 is set. Counts over many questions are the server's (``/metrics``).

Methods call ``add_warning``. ``collect_warnings`` collects the texts (an answer keeps them in its
details, an evaluation counts them); without a collector they are Python warnings.

``start_tracing`` sets up a provider for programs that have none of their own.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.errors import MissingExtraError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import ReadableSpan

    from stillroom.models import TextModel
    from stillroom.records import Completion, Hit, Prompt

__all__ = [
    "CONTENT_VARIABLE",
    "Span",
    "StageName",
    "StageTimes",
    "add_stage_time",
    "add_warning",
    "collect_stages",
    "collect_warnings",
    "configure_from_environment",
    "describe_hits",
    "open_span",
    "record_answer",
    "record_generation",
    "record_retrieval",
    "stage",
    "start_tracing",
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
    "select",
    "prompt",
    "generate",
    "check",
]

CONTENT_VARIABLE = "STILLROOM_TRACE_CONTENT"
_TRACER_NAME = "stillroom.rag"

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
    "select": ("RERANKER", ""),
    "prompt": ("CHAIN", ""),
    "generate": ("LLM", "chat"),
    "check": ("GUARDRAIL", ""),
}

_MAX_DOCUMENTS = 50


class StageTimes:
    """Milliseconds by stage, in the order in which stages first ended.

    A stage within another counts in both: ``retrieve`` includes ``keyword``.
    """

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Add the time of one run of a stage."""
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + seconds * 1000

    def include(self, times: StageTimes) -> None:
        """Add the times of another collection."""
        for name, value in times.milliseconds.items():
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + value

    def to_json(self) -> dict[str, float]:
        """Return milliseconds by stage, rounded to the microsecond."""
        return {name: round(value, 3) for name, value in self.milliseconds.items()}


class Span:
    """Span of a stage, or a null span; check ``is_recording`` before costly attributes."""

    __slots__ = ("_span",)

    def __init__(self, span: Any = None) -> None:
        self._span = span

    @property
    def is_recording(self) -> bool:
        """Whether the span is recorded."""
        return self._span is not None and bool(self._span.is_recording())

    @property
    def wants_content(self) -> bool:
        """Whether the span is recorded and texts are allowed in it."""
        return self.is_recording and os.environ.get(CONTENT_VARIABLE, "") not in {"", "0"}

    @contextmanager
    def current(self) -> Iterator[Span]:
        """Make spans of the body children of this one."""
        if self._span is None:
            yield self
            return
        with sys.modules["opentelemetry.trace"].use_span(self._span, end_on_exit=False):
            yield self

    def end(self) -> None:
        """End a span of ``open_span``."""
        if self._span is not None:
            self._span.end()

    def set_attributes(self, **attributes: Any) -> None:
        """Set attributes; two underscores in a name become a dot."""
        if self.is_recording:
            for name, value in attributes.items():
                self._span.set_attribute(name.replace("__", "."), value)

    def set_named_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes by their full names."""
        if self.is_recording:
            for name, value in attributes.items():
                self._span.set_attribute(name, value)


_NULL_SPAN = Span()
_NULL_CONTEXT = nullcontext(_NULL_SPAN)  # shared: it has no state
_TIMES: ContextVar[StageTimes | None] = ContextVar("stillroom_rag_stages", default=None)


@contextmanager
def collect_stages() -> Iterator[StageTimes]:
    """Yield the times of the body's stages in this thread; outer collectors get them, too."""
    outer, times = _TIMES.get(), StageTimes()
    token = _TIMES.set(times)
    try:
        yield times
    finally:
        _TIMES.reset(token)
        if outer is not None:
            outer.include(times)


def stage(name: StageName) -> AbstractContextManager[Span]:
    """Time the body as a stage, and record it as a span where OpenTelemetry is set up.

    Returns:
        A context manager that yields the stage's span.
    """
    times, tracer = _TIMES.get(), _get_tracer()
    is_unused = times is None and tracer is None
    return _NULL_CONTEXT if is_unused else _run_stage(name, times, tracer)


@contextmanager
def _run_stage(name: StageName, times: StageTimes | None, tracer: Any) -> Iterator[Span]:
    started = time.perf_counter()
    try:
        if tracer is None:
            yield _NULL_SPAN
        else:
            with tracer.start_as_current_span(f"rag.{name}") as span:
                yield _tag_span(Span(span), name)
    finally:
        if times is not None:
            times.add(name, time.perf_counter() - started)


def add_stage_time(name: StageName, seconds: float) -> None:
    """Add time to a stage that has no body of its own."""
    times = _TIMES.get()
    if times is not None:
        times.add(name, seconds)


def open_span(name: StageName) -> Span:
    """Start a span that the caller ends, for streams that pause and continue.

    It is a child of the current span, and not current itself; see ``Span.current``.
    """
    tracer = _get_tracer()
    return _NULL_SPAN if tracer is None else _tag_span(Span(tracer.start_span(f"rag.{name}")), name)


def describe_hits(
    hits: Sequence[Hit], *, prefix: str = "retrieval.documents", with_text: bool = False
) -> dict[str, Any]:
    """Return attributes with ids and scores of the first fifty hits, optionally with texts.

    ``prefix`` is one of OpenInference, as ``reranker.output_documents``.
    """
    attributes: dict[str, Any] = {"stillroom.hits": len(hits)}
    for number, hit in enumerate(hits[:_MAX_DOCUMENTS]):
        attributes[f"{prefix}.{number}.document.id"] = hit.passage.id
        attributes[f"{prefix}.{number}.document.score"] = hit.score
        if with_text:
            attributes[f"{prefix}.{number}.document.content"] = hit.passage.text
    if prefix == "retrieval.documents":
        rows = [{"id": hit.passage.id, "score": hit.score} for hit in hits[:_MAX_DOCUMENTS]]
        attributes["gen_ai.retrieval.documents"] = json.dumps(rows)
    return attributes


def record_retrieval(
    span: Span, query: str, hits: Sequence[Hit], index_digest: str, counts: Mapping[str, int]
) -> None:
    """Record the hits of a query in a span; texts only where they are allowed.

    ``counts`` has the number of candidates after each step of the pipeline.
    """
    if not span.is_recording:
        return
    span.set_attributes(gen_ai__data_source__id=index_digest)
    span.set_named_attributes({f"stillroom.step.{name}": value for name, value in counts.items()})
    span.set_named_attributes(describe_hits(hits, with_text=span.wants_content))
    if span.wants_content:
        span.set_attributes(input__value=query, gen_ai__retrieval__query__text=query)


def record_generation(span: Span, model: TextModel, prompt: Prompt, completion: Completion) -> None:
    """Record model and tokens of a completion in a span; texts only where they are allowed."""
    if not span.is_recording:
        return
    tokens = {"prompt": completion.prompt_tokens, "completion": completion.completion_tokens}
    span.set_attributes(
        gen_ai__request__model=model.name,
        gen_ai__usage__input_tokens=tokens["prompt"],
        gen_ai__usage__output_tokens=tokens["completion"],
        gen_ai__response__finish_reasons=[completion.finish_reason],
        llm__model_name=model.name,
        llm__token_count__prompt=tokens["prompt"],
        llm__token_count__completion=tokens["completion"],
    )
    if span.wants_content:
        span.set_attributes(
            input__value=json.dumps(prompt.to_json()), output__value=completion.text
        )


def record_answer(span: Span, question: str, answer: str) -> None:
    """Record question and answer in the span of a whole answer, where texts are allowed."""
    if span.wants_content:
        span.set_attributes(input__value=question, output__value=answer)


def _tag_span(span: Span, name: StageName) -> Span:
    kind, operation = _KINDS[name]
    span.set_attributes(openinference__span__kind=kind, gen_ai__provider__name="stillroom")
    if operation:
        span.set_attributes(gen_ai__operation__name=operation)
    return span


def _get_tracer() -> Any:
    """Return a tracer if the program has set up OpenTelemetry; it is never imported here."""
    module = sys.modules.get("opentelemetry.trace")
    if module is None or "opentelemetry.sdk.trace" not in sys.modules:
        return None
    return module.get_tracer(_TRACER_NAME)


_WARNINGS: ContextVar[list[str] | None] = ContextVar("stillroom_rag_notices", default=None)


def add_warning(text: str) -> None:
    """Add a warning: one sentence, without any text of the documents."""
    collected = _WARNINGS.get()
    if collected is None:
        warnings.warn(text, UserWarning, stacklevel=2)
    else:
        collected.append(text)


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Yield the list that collects the warnings of the body in this thread."""
    collected: list[str] = []
    token = _WARNINGS.set(collected)
    try:
        yield collected
    finally:
        _WARNINGS.reset(token)


_TRACE_VARIABLE = "STILLROOM_TRACE"


def configure_from_environment() -> None:
    """Set up tracing as STILLROOM_TRACE names it.

    Raises:
        MissingExtraError: If OpenTelemetry, or the exporter, is not installed.
        RecipeError: If the variable has an unknown value.
    """
    if os.environ.get("STILLROOM_METRICS"):
        add_warning("STILLROOM_METRICS has no effect: metrics are those of a server, at /metrics")
    target = os.environ.get(_TRACE_VARIABLE, "")
    if target:
        start_tracing(target)


def start_tracing(where: str) -> None:
    """Export the spans of this process.

    Args:
        where: ``console`` (standard error), ``otlp`` (the address in OTEL_EXPORTER_OTLP_ENDPOINT,
            by the package opentelemetry-exporter-otlp-proto-http), or a path that ends in
            ``.jsonl``, to which one line per span is appended.

    Raises:
        MissingExtraError: If OpenTelemetry, or the exporter, is not installed.
        RecipeError: If ``where`` is none of these.
    """
    with MissingExtraError.guard("opentelemetry-sdk", "otel", "Tracing"):
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
    exporter = _open_exporter(
        where, lambda out: ConsoleSpanExporter(out=out, formatter=_format_span)
    )
    provider = TracerProvider(resource=Resource.create({"service.name": "stillroom"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def _open_exporter(where: str, to_file: Callable[[Any], Any]) -> Any:
    if where == "console":
        return to_file(sys.stderr)
    if where == "otlp":
        with MissingExtraError.guard(
            "opentelemetry-exporter-otlp-proto-http", "otel", "Sending spans by OTLP"
        ):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[import-not-found, unused-ignore]  # the user's choice of exporter
                OTLPSpanExporter,
            )
        return OTLPSpanExporter()
    if where.endswith(".jsonl"):
        file = Path(where).open("a", encoding="utf-8")  # noqa: SIM115  # closed at exit
        atexit.register(file.close)
        return to_file(file)
    raise RecipeError(
        f"spans cannot be exported to {where!r}",
        code="rag.trace",
        where=_TRACE_VARIABLE,
        expected="console, otlp, or a path that ends in .jsonl",
        next=f"export {_TRACE_VARIABLE}=spans.jsonl",
    )


def _format_span(span: ReadableSpan) -> str:
    return str(span.to_json(indent=None)) + "\n"
