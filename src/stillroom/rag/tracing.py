"""Setting up OpenTelemetry for commands: to the terminal, a file of JSON lines, or OTLP.

A program that has providers of its own needs none of this: ``stages`` and ``metrics`` use what is
set up.
"""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import MissingExtraError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["METRICS", "VARIABLE", "observe_if_asked", "start_metrics", "start_tracing"]

VARIABLE = "STILLROOM_TRACE"
METRICS = "STILLROOM_METRICS"


def observe_if_asked() -> None:
    """Set up what STILLROOM_TRACE and STILLROOM_METRICS name, if they name anything.

    Raises:
        MissingExtraError: If OpenTelemetry, or the exporter, is not installed.
        RecipeError: If one names what is nowhere.
    """
    for variable, begin in ((VARIABLE, start_tracing), (METRICS, start_metrics)):
        where = os.environ.get(variable, "")
        if where:
            begin(where)


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
    exporter = _open_exporter(
        where, VARIABLE, lambda out: ConsoleSpanExporter(out=out, formatter=_line), _open_otlp
    )
    provider = TracerProvider(resource=Resource.create({"service.name": "stillroom"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider


def start_metrics(where: str) -> Any:
    """Send the counters and latencies of this process somewhere, and return the provider.

    They are sent once a minute (OTEL_METRIC_EXPORT_INTERVAL, in milliseconds), and at the end.

    Args:
        where: As for ``start_tracing``.

    Raises:
        MissingExtraError: If OpenTelemetry, or the exporter, is not installed.
        RecipeError: If it is none of these.
    """
    try:
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import (
            ConsoleMetricExporter,
            PeriodicExportingMetricReader,
        )
        from opentelemetry.sdk.resources import Resource
    except ImportError as error:
        raise MissingExtraError.of("opentelemetry-sdk", "otel", "Metrics") from error
    exporter = _open_exporter(
        where,
        METRICS,
        lambda out: ConsoleMetricExporter(out=out, formatter=_line_of_metrics),
        _open_otlp_metrics,
    )
    provider = MeterProvider(
        [PeriodicExportingMetricReader(exporter)],
        resource=Resource.create({"service.name": "stillroom"}),
    )
    metrics.set_meter_provider(provider)
    return provider


def _open_exporter(
    where: str, variable: str, to_file: Callable[[Any], Any], to_otlp: Callable[[], Any]
) -> Any:
    if where == "console":
        return to_file(sys.stderr)
    if where == "otlp":
        return to_otlp()
    if where.endswith(".jsonl"):
        file = Path(where).open("a", encoding="utf-8")  # noqa: SIM115  # open while the process is
        atexit.register(file.close)
        return to_file(file)
    raise RecipeError(
        f"{where!r} is nowhere that {'spans' if variable == VARIABLE else 'metrics'} can go",
        code="rag.trace",
        where=variable,
        expected="console, otlp, or a path that ends in .jsonl",
        next=f"export {variable}={'spans' if variable == VARIABLE else 'metrics'}.jsonl",
    )


def _open_otlp() -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[import-not-found, unused-ignore]  # the user's choice of exporter
            OTLPSpanExporter,
        )
    except ImportError as error:
        raise _without_otlp() from error
    return OTLPSpanExporter()


def _open_otlp_metrics() -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # type: ignore[import-not-found, unused-ignore]  # the user's choice of exporter
            OTLPMetricExporter,
        )
    except ImportError as error:
        raise _without_otlp() from error
    return OTLPMetricExporter()


def _without_otlp() -> MissingExtraError:
    return MissingExtraError.of(
        "opentelemetry-exporter-otlp-proto-http", "otel", "Sending spans and metrics by OTLP"
    )


def _line(span: ReadableSpan) -> str:
    return str(span.to_json(indent=None)) + "\n"


def _line_of_metrics(data: MetricsData) -> str:
    return str(data.to_json(indent=None)) + "\n"
