"""Interleaved measurement: ours, the peer and the bound in one run, one JSON line a figure."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable

REPEATS = 7


def measure(
    what: str,
    ours: Callable[[], object],
    peer: tuple[str, Callable[[], object]],
    bound: Callable[[], object],
    *,
    unit: str = "CPU s",
    repeats: int = REPEATS,
) -> None:
    """Time three functions in turn, ``repeats`` times, and print the medians and their ratios.

    Args:
        what: The figure's name, as ``merge/linear/small/cpu``.
        ours: Our way.
        peer: The peer's name and way; both must leave the same result.
        bound: What the machine cannot do without (copying the bytes, say).
        unit: ``CPU s`` times the processor, anything else the wall clock.
        repeats: How often each is run.
    """
    clock = time.process_time if unit == "CPU s" else time.perf_counter
    times: dict[str, list[float]] = {"ours": [], "peer": [], "bound": []}
    ways = {"ours": ours, "peer": peer[1], "bound": bound}
    for way in ways.values():
        way()
    for _ in range(repeats):
        for name, way in ways.items():
            start = clock()
            way()
            times[name].append(clock() - start)
    middle = {name: statistics.median(values) for name, values in times.items()}
    quarters = statistics.quantiles(times["ours"], n=4)
    line = {
        "what": what,
        "value": round(middle["ours"], 5),
        "unit": unit,
        "ours": round(middle["ours"], 5),
        "peer": {"name": peer[0], "value": round(middle["peer"], 5)},
        "times_better": round(middle["peer"] / middle["ours"], 3),
        "bound_ratio": round(middle["ours"] / middle["bound"], 3) if middle["bound"] else None,
        "n": repeats,
        "iqr": round(quarters[2] - quarters[0], 5),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    print(json.dumps(line), flush=True)
