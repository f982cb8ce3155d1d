"""Latency by stage and counters through OpenTelemetry, beside the spans of ``stages``.

A program that has set up a meter provider gets them without more; where none is, nothing is
measured and OpenTelemetry is never imported. What is told are times, counts and names of stages:
no text, id or path.

| instrument | kind | attributes |
|---|---|---|
| ``stillroom.rag.stage.duration`` | histogram, s | ``stillroom.stage`` |
| ``stillroom.rag.answers`` | counter | ``stillroom.outcome``: answered, abstained or cached |
| ``gen_ai.client.token.usage`` | histogram, tokens | ``gen_ai.token.type``: input or output |
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.records import Answer

__all__ = ["count_answer", "count_stage", "is_metered"]

_LIBRARY = "stillroom.rag"
_WRITTEN = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "stillroom"}
_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True, slots=True)
class _Instruments:
    stages: Any
    answers: Any
    tokens: Any


def is_metered() -> bool:
    """Return whether this process has set up OpenTelemetry's metrics."""
    return _provider() is not None


def count_stage(name: str, seconds: float) -> None:
    """Record one run of a stage, if anybody measures."""
    provider = _provider()
    if provider is not None:
        _open(provider).stages.record(seconds, {"stillroom.stage": name})


def count_answer(answer: Answer, seconds: float) -> None:
    """Record an answer: how it came out, its tokens, and what it took as a whole.

    Args:
        answer: Finished.
        seconds: From the question to its last piece, the reader's own time included.
    """
    provider = _provider()
    if provider is None:
        return
    told, instruments = answer.details, _open(provider)
    outcome = "abstained" if told["abstained"] else "answered"
    outcome = "cached" if told["cached"] else outcome
    instruments.answers.add(1, {"stillroom.outcome": outcome})
    instruments.stages.record(seconds, {"stillroom.stage": "ask"})
    if told["cached"]:
        return  # its stages and tokens are those of the answer that was kept
    if "check" in told["stage_ms"]:
        check_s = told["stage_ms"]["check"] / 1000
        instruments.stages.record(check_s, {"stillroom.stage": "check"})
    written = answer.completion
    for kind, count in (("input", written.prompt_tokens), ("output", written.completion_tokens)):
        if count:
            instruments.tokens.record(count, {**_WRITTEN, "gen_ai.token.type": kind})


def _provider() -> Any:
    """Return the meter provider that this process has set up; importing it is the program's."""
    module = sys.modules.get("opentelemetry.metrics")
    sdk = sys.modules.get("opentelemetry.sdk.metrics")
    if module is None or sdk is None:
        return None
    provider = module.get_meter_provider()
    return provider if isinstance(provider, sdk.MeterProvider) else None


@lru_cache(maxsize=4)
def _open(provider: Any) -> _Instruments:
    meter = provider.get_meter(_LIBRARY)
    return _Instruments(
        meter.create_histogram(
            "stillroom.rag.stage.duration",
            unit="s",
            description="time of a stage of a question",
            explicit_bucket_boundaries_advisory=_BOUNDS_S,
        ),
        meter.create_counter("stillroom.rag.answers", description="answers by outcome"),
        meter.create_histogram(
            "gen_ai.client.token.usage", unit="{token}", description="tokens read and written"
        ),
    )
