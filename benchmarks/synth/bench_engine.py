"""2,000 records from a server with 50 ms latency at 32 requests at once: throughput and CPU.

The server runs in another process; what is timed is one whole `stillroom run` of a synth recipe
(generator rewrite, no filters), its start and its writing included, less the same for 20 records;
CPU is of that process. The ideal is 2,000 / 32 * 50 ms. ``resent`` counts requests beyond 2,000
that a run made which was killed (SIGKILL) at a random moment five times and then ended; records of
it and of one that was never killed must be the same bytes.
"""

import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from stillroom.provenance import digest_file
from stillroom.records import Location, Origin, Passage

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench" / "synth" / "engine"
COUNT, FEW, CONCURRENCY, LATENCY = 2000, 20, 32, 0.05
SERVER = """
import asyncio, sys
from aiohttp import web
seen = 0
async def chat(request):
    global seen
    seen += 1
    body = await request.json()
    await asyncio.sleep(LATENCY)
    said = "In other words: " + body["messages"][-1]["content"][-80:-30]
    choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 60, "completion_tokens": 20}
    return web.json_response({"choices": [choice], "usage": usage})
async def count(request):
    return web.json_response({"seen": seen})
app = web.Application()
app.add_routes([web.post("/v1/chat/completions", chat), web.get("/count", count)])
web.run_app(app, host="127.0.0.1", port=PORT, print=None, access_log=None)
"""


def write_passages(path: Path, count: int) -> Path:
    """Write passages of some forty words, all different."""
    rng = random.Random(0)
    words = [f"w{number}" for number in range(3000)]
    rows = []
    for number in range(count):
        text = " ".join(rng.choice(words) for _ in range(40)) + f" and number {number}."
        place = Location(f"doc-{number % 50}.txt", "0" * 64, 0, 1)
        start = 1000 * number
        passage = Passage(
            f"doc-{number % 50}", start, start + len(text), text, place, origin=Origin("human")
        )
        rows.append(json.dumps(passage.to_json()) + "\n")
    path.write_text("".join(rows))
    return path


def write_recipe(name: str, count: int, port: int) -> Path:
    """Write the recipe as JSON, which is YAML."""
    recipe = {
        "version": 1,
        "kind": "synth",
        "index": str(write_passages(WORK / f"{name}.jsonl", count)),
        "model": f"http://127.0.0.1:{port}/v1#m",
        "engine": {"concurrency": CONCURRENCY},
        "generator": "rewrite",
        "filters": [],
        "target": {"train": 10 * count, "held_out": 1},
        "held_out": 0,
        "attempts": 1,
        "include_passages": 0,
    }
    path = WORK / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    """Return the command line of a run."""
    return [sys.executable, "-m", "stillroom", "run", str(recipe), "--out", str(out), *more]


def timed(recipe: Path, out: Path) -> tuple[float, float]:
    """Return wall and CPU seconds of a run."""
    shutil.rmtree(out, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    subprocess.run(command(recipe, out, "--quiet"), check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seen(port: int) -> int:
    """Return how many requests the server saw."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/count") as answer:
        return int(json.load(answer)["seen"])


def kill_and_end(recipe: Path, out: Path, port: int) -> int:
    """Run, kill five times at random moments, end; return the requests made."""
    shutil.rmtree(out, ignore_errors=True)
    rng, before = random.Random(1), seen(port)
    for number in range(5):
        child = subprocess.Popen(
            command(recipe, out, "--quiet", *(["--resume"] if number else [])),
            stdout=subprocess.DEVNULL,
        )
        until = seen(port) + rng.randint(100, 350)
        while seen(port) < until and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run(
        command(recipe, out, "--quiet", "--resume"), check=True, stdout=subprocess.DEVNULL
    )
    return seen(port) - before


def say(what: str, value: float, **more: object) -> None:
    """Print one figure."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(json.dumps({"what": what, "value": round(value, 4), **more, "machine": machine}))


def main() -> None:
    """Start the server and measure."""
    WORK.mkdir(parents=True, exist_ok=True)
    port = 18731
    text = SERVER.replace("PORT", str(port)).replace("LATENCY", str(LATENCY))
    server = subprocess.Popen([sys.executable, "-c", text])
    try:
        time.sleep(2)
        many, few = write_recipe("many", COUNT, port), write_recipe("few", FEW, port)
        walls, cpus = [], []
        for _ in range(3):
            short, whole = timed(few, WORK / "out-few"), timed(many, WORK / "out")
            walls.append(whole[0] - short[0])
            cpus.append((whole[1] - short[1]) / (COUNT - FEW))
        ideal = (COUNT - FEW) / CONCURRENCY * LATENCY
        say("synth/engine/efficiency", ideal / sorted(walls)[1], n=3, ideal_s=ideal)
        say("synth/engine/cpu_ms_per_record", 1000 * sorted(cpus)[1], n=3)
        wanted = digest_file(WORK / "out/output/records.jsonl")
        requests = kill_and_end(many, WORK / "killed", port)
        assert digest_file(WORK / "killed/output/records.jsonl") == wanted
        say("synth/resume/resent", requests - COUNT, kills=5, in_flight=CONCURRENCY)
        say("synth/resume/resent_beyond_in_flight", max(0, requests - COUNT - 5 * CONCURRENCY))
    finally:
        server.kill()


if __name__ == "__main__":
    main()
