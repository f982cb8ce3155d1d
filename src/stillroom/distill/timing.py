"""Latency and peak memory of teacher and student: what depends on the clock, kept apart.

``timings.json`` and ``timings.html`` lie beside the output, so that the same work gives the same
artifact. Knows two folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from stillroom.evaluate import Metric, Plot, Report, bootstrap
from stillroom.evaluate.page import draw_page
from stillroom.evaluate.report import Grid
from stillroom.jobs import Job, atomic_write
from stillroom.models.speed import Speed, measure_speed

__all__ = ["TIMINGS", "measure_timings", "write_timings"]

TIMINGS = "timings"
_TIMES = (("reading 128 tokens", "prefill_ms"), ("writing a token", "decode_ms"))


def measure_timings(job: Job, folders: Mapping[str, Path]) -> dict[str, Speed]:
    """Return the speed of each checkpoint, measured once even if resumed, one at a time."""
    journal = job.journal("speed")
    with job.phase("speed", len(folders), "models") as progress:
        for name, folder in folders.items():
            job.check_cancelled()
            if name not in journal:
                journal.put(name, measure_speed(folder).to_json())
            progress.advance()
    return {name: Speed(**journal[name]) for name in folders}


def write_timings(job: Job, speeds: Mapping[str, Speed], *, seed: int) -> Report:
    """Write timings.json and timings.html into the job's folder, beside the output."""
    report, names = Report("Latency and memory"), list(speeds)
    lines = []
    for label, key in _TIMES:
        for name, speed in speeds.items():
            values = getattr(speed, key)
            report.add(
                bootstrap(values, statistic="median", seed=seed, name=f"{name}/{key}", unit="ms"),
                is_headline=key == "decode_ms",
            )
        lines.append((label, "ms", tuple(f"{name}/{key}" for name in names)))
    for name, speed in speeds.items():
        if speed.peak_bytes:
            report.add(
                Metric(f"{name}/peak_bytes", float(speed.peak_bytes), unit="B", note="seen once")
            )
    lines.append(("peak memory", "B", tuple(f"{name}/peak_bytes" for name in names)))
    kinds = ", ".join(f"{name} in {speed.dtype}" for name, speed in speeds.items())
    report.section(
        "Side by side",
        f"One prompt at a time, five times after a first that is not counted: {kinds}. Medians; "
        "peak memory is what loading, reading and writing held above what the process held "
        "before. Other work on the machine shows in these figures.",
        metrics=list(report.metrics.values()),
        grid=Grid("Latency and memory", tuple(names), tuple(lines)),
        plot=Plot.of(
            "Milliseconds to write one token",
            [report.metrics[f"{name}/decode_ms"] for name in names],
            labels=names,
            kind="bars",
        ),
    )
    with atomic_write(job.work / f"{TIMINGS}.json") as file:
        json.dump(report.to_json(), file, ensure_ascii=False, indent=1)
    with atomic_write(job.work / f"{TIMINGS}.html") as file:
        file.write(draw_page(report.to_json()))
    return report
