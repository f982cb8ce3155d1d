"""What the benchmarks of the engine share: a server, recipes that ask it, and runs of them."""

import json
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillroom.records import Location, Origin, Passage

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench" / "synth" / "engine"
CONCURRENCY = 32


class Endpoint:
    """A server in a process of its own."""

    def __init__(self, port: int) -> None:
        """Know where it listens."""
        self.port = port

    def seen(self) -> int:
        """Return how many completions it was asked for."""
        return int(self._ask("count")["seen"])

    def span(self) -> dict[str, float]:
        """Return how long completions took by its own clock since this was last asked."""
        return self._ask("span")

    def _ask(self, path: str) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}") as answer:
            told: dict[str, float] = json.load(answer)
            return told


@contextmanager
def serve(latency: float) -> Iterator[Endpoint]:
    """Start the server, and kill it at the end of the body."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("engine_server.py")
    server = subprocess.Popen([sys.executable, str(script), str(port), str(latency)])
    endpoint = Endpoint(port)
    try:
        for _ in range(200):
            try:
                endpoint.seen()
                break
            except OSError:
                time.sleep(0.05)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def make_prompts(count: int) -> list[str]:
    """Return texts of some forty words, all different; more of them begin with the same ones."""
    rng = random.Random(0)
    words = [f"w{number}" for number in range(3000)]
    return [
        " ".join(rng.choice(words) for _ in range(40)) + f" and number {number}."
        for number in range(count)
    ]


def write_recipe(
    name: str,
    prompts: list[str],
    endpoint: Endpoint,
    *,
    concurrency: int = CONCURRENCY,
    attempts: int = 1,
    cache: Path | None = None,
    other: Endpoint | None = None,
) -> Path:
    """Write passages, and the recipe as JSON, which is YAML; ``other`` is asked half of it."""
    WORK.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, text in enumerate(prompts):
        place = Location(f"doc-{number % 50}.txt", "0" * 64, 0, 1)
        start = 1000 * number
        passage = Passage(
            f"doc-{number % 50}", start, start + len(text), text, place, origin=Origin("human")
        )
        rows.append(json.dumps(passage.to_json()) + "\n")
    (WORK / f"{name}.jsonl").write_text("".join(rows))
    engine: dict[str, object] = {"concurrency": concurrency}
    if other is not None:
        engine = {"concurrency": concurrency // 2, "weights": [1, 1]}
        engine["fallbacks"] = [f"http://127.0.0.1:{other.port}/v1#m"]
    recipe = {
        "version": 1,
        "kind": "synth.records",
        "index": str(WORK / f"{name}.jsonl"),
        "model": f"http://127.0.0.1:{endpoint.port}/v1#m",
        "engine": engine,
        "pipeline": {
            "generator": "rewrite",
            "filters": [],
            "attempts": attempts,
            "include_passages": 0,
        },
        "num_records": {"train": 10 * len(prompts) * attempts, "held_out": 0},
        "held_out": 0,
        **({"cache": str(cache)} if cache else {}),
    }
    path = WORK / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    """Return the command line of a run."""
    shown = [str(recipe), "--out", str(out), "--quiet", *more]
    return [sys.executable, "-m", "stillroom", "run", *shown]


def run(recipe: Path, out: Path, *more: str) -> Path:
    """Run a recipe anew; return its folder of results."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out.with_name(f".{out.name}.partial"), ignore_errors=True)
    subprocess.run(command(recipe, out, *more), check=True, stdout=subprocess.DEVNULL)
    return out / "output"


def say(what: str, value: float, **more: object) -> None:
    """Print one figure."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    line = {"what": what, "value": round(value, 4), **more, "machine": machine}
    print(json.dumps(line), flush=True)
