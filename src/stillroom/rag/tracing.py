"""Setting up OpenTelemetry for commands: spans to the terminal, a file of JSON lines, or OTLP.

A program that has a tracer provider of its own needs none of this: ``stages`` uses what is set up.
"""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import MissingExtraError, RecipeError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["VARIABLE", "start_tracing", "trace_if_asked"]

VARIABLE = "STILLROOM_TRACE"


def trace_if_asked() -> None:
    """Set up what STILLROOM_TRACE names, if it names anything; see ``start_tracing``."""
    where = os.environ.get(VARIABLE, "")
    if where:
        start_tracing(where)


def start_tracing(where: str) -> Any:
    """Send the spans of this process somewhere, and return the provider.

    Args:
        where: ``console`` (standard error), ``otlp`` (the address in OTEL_EXPORTER_OTLP_ENDPOINT,
            by the package opentelemetry-exporter-otlp-proto-http), or a path that ends in
            ``.jsonl``, to which a line a span is added.

    Raises:
        MissingExtraError: If OpenTelemetry, or the exporter, is not installed.
        RecipeError: If it is none of these.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
    except ImportError as error:
        raise MissingExtraError.of("opentelemetry-sdk", "otel", "Tracing") from error
    if where == "console":
        exporter: Any = ConsoleSpanExporter(out=sys.stderr, formatter=_line)
    elif where == "otlp":
        exporter = _open_otlp()
    elif where.endswith(".jsonl"):
        file = Path(where).open("a", encoding="utf-8")  # noqa: SIM115  # open while the process is
        atexit.register(file.close)
        exporter = ConsoleSpanExporter(out=file, formatter=_line)
    else:
        raise RecipeError(
            f"{where!r} is nowhere that spans can go",
            code="rag.trace",
            where=VARIABLE,
            expected="console, otlp, or a path that ends in .jsonl",
            next=f"export {VARIABLE}=spans.jsonl",
        )
    provider = TracerProvider(resource=Resource.create({"service.name": "stillroom"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider


def _open_otlp() -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[import-not-found, unused-ignore]  # the user's choice of exporter
            OTLPSpanExporter,
        )
    except ImportError as error:
        raise MissingExtraError.of(
            "opentelemetry-exporter-otlp-proto-http", "otel", "Sending spans by OTLP"
        ) from error
    return OTLPSpanExporter()


def _line(span: ReadableSpan) -> str:
    return str(span.to_json(indent=None)) + "\n"
