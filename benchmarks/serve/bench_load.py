"""64 streaming clients: errors, memory, fairness, and what the server costs beside its engine.

The engine is SmolLM2-135M in llama.cpp, one instance a core. ``serve/overhead_share`` compares the
pieces of text a second that as many threads draw from the engine itself with those that clients in
another process get through the server, in turns on the same opened engine; the same is said in
processor seconds a piece, which other work on the machine does not move. ``serve/own_p95_ms`` is
the server's own time of each request: all of it but waiting in line and the engine's work.

    python benchmarks/serve/bench_load.py [--seconds 300] [--clients 64] [--turns 7]
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import uvicorn
from benchmarks.serve.asked import QUESTION, THINGS, TOKENS

from stillroom.models import open_text_model
from stillroom.records import Message, Prompt, Sampling
from stillroom.serve import ServedModel, create_app
from stillroom.serve.middleware.metrics import ServerMetrics

MODEL = "hub:HuggingFaceTB/SmolLM2-135M-Instruct"
TURN_S = 12.0
CLIENTS = Path(__file__).with_name("load_clients.py")


class Keeping(ServerMetrics):
    """Keeps the server's own seconds of every request, besides counting them."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self.owns: list[float] = []

    def count_request(
        self, route: str, method: str, status: int, seconds: float, own_s: float | None = None
    ) -> None:
        """Count, and keep."""
        super().count_request(route, method, status, seconds, own_s)
        if own_s is not None:
            self.owns.append(own_s)


def draw_bare(model: Any, seconds: float) -> tuple[int, float]:
    """Return pieces and processor seconds of as many threads as the engine has lanes."""
    counts, end = [0] * model.lanes, time.monotonic() + seconds

    def work(lane: int) -> None:
        turn = lane
        while time.monotonic() < end:
            question = QUESTION.format(THINGS[turn % len(THINGS)])
            prompt = Prompt((Message("user", question),))
            for _ in model.stream(prompt, Sampling(max_new_tokens=TOKENS)):
                counts[lane] += time.monotonic() < end
            turn += 1

    begun, cpu = time.monotonic(), time.process_time()
    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(model.lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = (time.process_time() - cpu) * seconds / (time.monotonic() - begun)
    return sum(counts), spent


def draw_served(port: int, clients: int, seconds: float) -> tuple[dict[str, Any], float]:
    """Return what clients got, and the processor seconds of this process meanwhile."""
    begun, cpu = time.monotonic(), time.process_time()
    command = [sys.executable, str(CLIENTS), str(port), "small", str(clients), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    spent = (time.process_time() - cpu) * seconds / (time.monotonic() - begun)
    return json.loads(done.stdout), spent


def tell(what: str, value: float, unit: str, **more: object) -> None:
    """Print one figure."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    line = {"what": what, "value": value, "unit": unit, **more, "machine": machine}
    print(json.dumps(line), flush=True)


def quarters(values: Sequence[float]) -> float:
    """Return the distance of the outer quarters, 0 of fewer than two."""
    if len(values) < 2:
        return 0.0
    found = statistics.quantiles(values, n=4)
    return found[2] - found[0]


def compare(model: Any, port: int, turns: int, clients: int) -> None:
    """Draw from the engine and through the server in turns, and tell what the server costs."""
    shares: list[float] = []
    cpus, bare_rates, served_rates = list(shares), list(shares), list(shares)
    draw_bare(model, 3.0)
    draw_served(port, model.lanes, 3.0)
    for _ in range(turns):
        bare, bare_cpu = draw_bare(model, TURN_S)
        served, served_cpu = draw_served(port, clients, TURN_S)
        if not bare or not served["pieces"]:
            raise SystemExit(f"nothing was drawn in {TURN_S} s: the machine is too busy to measure")
        bare_rates.append(bare / TURN_S)
        served_rates.append(served["pieces"] / TURN_S)
        shares.append(1 - served["pieces"] / bare)
        cpus.append((served_cpu / served["pieces"]) / (bare_cpu / bare) - 1)
    tell(
        "serve/overhead_share",
        round(statistics.median(shares), 4),
        "share of the engine's tokens a second",
        ours=round(statistics.median(served_rates), 2),
        peer={"name": "the bare engine", "value": round(statistics.median(bare_rates), 2)},
        cpu_share=round(statistics.median(cpus), 4),
        n=turns,
        iqr=round(quarters(shares), 4),
        clients=clients,
    )


def endure(port: int, clients: int, seconds: float, counters: Keeping) -> None:
    """Have clients stream for a long time, and tell how it went."""
    process = psutil.Process()
    sizes: list[int] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(1.0):
            sizes.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    counters.owns.clear()
    watcher.start()
    told, _ = draw_served(port, clients, seconds)
    is_over.set()
    watcher.join()
    answers = told["answers"]
    for error in told["errors"][:3]:
        print(error, file=sys.stderr)
    if not any(answers):
        raise SystemExit(f"no answer ended in {seconds} s: give more, or look at the errors")
    more = {"seconds": seconds, "answers": sum(answers), "clients": clients}
    tell(f"serve/clients_{clients}_errors", len(told["errors"]), "errors", **more)
    spread = max(answers) - min(answers)
    tell(f"serve/clients_{clients}_spread", spread, "answers", least=min(answers), **more)
    tell(f"serve/clients_{clients}_longest_pause_s", round(told["longest_s"], 2), "s", **more)
    third = max(len(sizes) // 3, 1)
    grown = statistics.median(sizes[-third:]) - statistics.median(sizes[third : 2 * third] or sizes)
    tell(
        f"serve/clients_{clients}_memory_growth",
        round(grown / 2**20, 2),
        "MiB from the second third to the last",
        most=round(max(sizes) / 2**20),
        **more,
    )
    owns = sorted(own * 1000 for own in counters.owns)
    tell(
        "serve/own_p95_ms",
        round(owns[int(len(owns) * 0.95)], 2),
        "ms a request",
        median=round(statistics.median(owns), 2),
        n=len(owns),
        iqr=round(quarters(owns), 2),
        clients=clients,
    )


def main() -> None:
    """Open the engine once, serve it, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    counters, model = Keeping(), open_text_model(MODEL)
    listening = socket.create_server(("127.0.0.1", 0))
    app = create_app(ServedModel("small", model), counters=counters)
    config = uvicorn.Config(app, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    port = listening.getsockname()[1]
    try:
        if given.turns:
            compare(model, port, given.turns, model.lanes)
        endure(port, given.clients, given.seconds, counters)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        model.close()


if __name__ == "__main__":
    main()
