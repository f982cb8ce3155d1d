"""Whole commands, ours and a peer's, run in turn: processor seconds, wall clock, peak memory."""

import compileall
import ctypes
import importlib
import json
import mmap
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What one command took: processor and wall seconds, peak anonymous and resident MB."""

    cpu: float
    wall: float
    anon_mb: float
    rss_mb: float


def run_command(command: Sequence[str], *, threads: int | None = None) -> Cost:
    """Run a command to its end and return what it took.

    Args:
        command: Program and arguments.
        threads: Holds the libraries' own thread pools to so many.

    Raises:
        RuntimeError: If it fails; with the end of what it said.
    """
    env = dict(os.environ)
    if threads:
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    peak = {"RssAnon": 0, "VmRSS": 0}
    begun, before = time.perf_counter(), os.times()
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )

    def watch() -> None:
        path = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                lines = path.read_text().splitlines()
            except OSError:
                return
            for line in lines:
                key, _, value = line.partition(":")
                if key in peak and value:
                    peak[key] = max(peak[key], int(value.split()[0]))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    said, _ = process.communicate()
    wall, after = time.perf_counter() - begun, os.times()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{said[-2000:]}")
    cpu = (
        after.children_user - before.children_user + after.children_system - before.children_system
    )
    return Cost(cpu, wall, peak["RssAnon"] / 1000, peak["VmRSS"] / 1000)


def compile_package(package: str) -> None:
    """Compile a package's modules to bytecode, as pip does when it installs a peer.

    A checkout under PYTHONDONTWRITEBYTECODE would else be compiled anew by every command.
    """
    for path in importlib.import_module(package).__path__:
        compileall.compile_dir(path, quiet=1)


def cached_share(paths: Sequence[Path]) -> float:
    """Return the share of some files' pages that lie in memory now, 0 to 1 (Linux)."""
    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    resident = total = 0
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
            pages = (ctypes.c_ubyte * -(-size // page))()
            start = ctypes.c_char.from_buffer(view)
            if libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages):
                raise OSError(ctypes.get_errno(), "mincore failed")
            del start
        resident += sum(each & 1 for each in bytes(pages))
        total += len(pages)
    return resident / total


def print_figure(
    what: str,
    unit: str,
    ours: Sequence[float],
    peer: tuple[str, Sequence[float]] | None,
    bound: float | None,
    **more: object,
) -> None:
    """Print one figure as one JSON line: medians, ratio to the peer, ratio to the bound."""
    value = statistics.median(ours)
    other = statistics.median(peer[1]) if peer and peer[1] else None
    quarters = statistics.quantiles(ours, n=4) if len(ours) > 1 else (value, value, value)
    line = {
        "what": what,
        "value": round(value, 4),
        "unit": unit,
        "ours": round(value, 4),
        "peer": {"name": peer[0], "value": round(other, 4)} if peer and other else None,
        "times_better": round(other / value, 3) if other else None,
        "bound_ratio": round(value / bound, 3) if bound else None,
        "n": len(ours),
        "iqr": round(quarters[2] - quarters[0], 4),
        **more,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    print(json.dumps(line), flush=True)


def interleave(repeats: int, *ways: Callable[[], Cost]) -> list[list[Cost]]:
    """Run several ways in turn, ``repeats`` times; return the costs of each."""
    costs: list[list[Cost]] = [[] for _ in ways]
    for _ in range(repeats):
        for kept, way in zip(costs, ways, strict=True):
            kept.append(way())
    return costs
