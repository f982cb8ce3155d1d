"""2,000 prompts to a server with 50 ms latency at 32 at once, ours and three peers in turn.

The server runs in a process of its own. What is timed is a whole process, its start and its writing
included, less the same for a few prompts: for ours one `stillroom run` (generator rewrite, no
filters), for a peer its usual way to complete prompts. CPU counts children. The ideal is prompts /
32 * 50 ms; ``bare`` is a client in the same run that does nothing but ask. ``at_server`` is the
share of the ideal by the server's own clock, from the first request to the last answer: without
what a process does after its last answer, and without what it sleeps before its first request.

Then the CPU of a record where a completion cache stands before the server, which is empty, and
where two servers share what is asked. Then, with a short latency: requests that a run repeats which
is killed five times at random moments, beyond those in flight; what one refused row among 100
costs; requests for one more row of a finished run with a cache; whether one request at a time and
64 give the same bytes.
"""

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.commands import Cost, compile_package, run_command
from benchmarks.peers import peer_python
from benchmarks.synth.engine_runs import (
    CONCURRENCY,
    WORK,
    Endpoint,
    command,
    make_prompts,
    run,
    say,
    serve,
    write_recipe,
)

from stillroom.provenance import digest_file

COUNT, FEW, LATENCY, REPEATS, PEER_REPEATS = 2000, 100, 0.05, 3, 2
HERE = Path(__file__).parent
PEERS = {
    "distilabel": ("distilabel", "1.5.3", ("openai", "requests", "beautifulsoup4")),
    "data_designer": ("data-designer", "0.9.7", ()),
    "curator": ("bespokelabs-curator", "0.1.31", ()),
}
QUIET = {
    "NEMO_TELEMETRY_ENABLED": "false",
    "TELEMETRY_ENABLED": "False",
    "CURATOR_VIEWER": "0",
    "OPENAI_API_KEY": "none",
}
Slope = tuple[float, float, float]


def slope(way: Callable[[int], Cost], endpoint: Endpoint) -> Slope:
    """Return wall and CPU seconds of the prompts beyond the few, and the server's for all."""
    few = way(FEW)
    endpoint.span()
    many = way(COUNT)
    return many.wall - few.wall, many.cpu - few.cpu, endpoint.span()["seconds"]


def ours(endpoint: Endpoint, *, cache: bool = False, other: Endpoint | None = None) -> Slope:
    """Return what our runs take, with an empty cache or another server beside."""

    def way(count: int) -> Cost:
        file = WORK / "completions.sqlite" if cache else None
        for old in WORK.glob("completions.sqlite*"):
            old.unlink()
        recipe = write_recipe(
            f"ours-{count}", make_prompts(count), endpoint, cache=file, other=other
        )
        shutil.rmtree(WORK / "out", ignore_errors=True)
        return run_command(command(recipe, WORK / "out"))

    return slope(way, endpoint)


def peer(name: str, endpoint: Endpoint) -> Slope:
    """Return what a peer's runs take."""
    package, version, also = PEERS[name]
    python = peer_python(package, version, also=also)

    def way(count: int) -> Cost:
        prompts = WORK / f"prompts-{count}.json"
        prompts.write_text(json.dumps(make_prompts(count)))
        out = WORK / f"out-{name}"
        shutil.rmtree(out, ignore_errors=True)
        worker = str(HERE / f"{name}_worker.py")
        shown = [str(endpoint.port), str(CONCURRENCY), str(prompts), str(out)]
        before = endpoint.seen()
        cost = run_command([str(python), worker, *shown])
        if endpoint.seen() - before < count:
            raise RuntimeError(f"{name} did not ask for every prompt")
        return cost

    return slope(way, endpoint)


def bare(endpoint: Endpoint) -> float:
    """Return the seconds that nothing but asking takes."""
    words = [sys.executable, str(HERE / "bare_client.py"), str(endpoint.port)]
    words += [str(COUNT - FEW), str(CONCURRENCY)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["seconds"])


def measure_cost(endpoint: Endpoint) -> None:
    """Measure throughput and CPU, ours and the peers' in turn."""
    mine: list[Slope] = []
    bares: list[float] = []
    latencies: list[float] = []
    theirs: dict[str, list[Slope]] = {name: [] for name in PEERS}
    for number in range(REPEATS):
        endpoint.span()
        bares.append(bare(endpoint))
        latencies.append(endpoint.span()["latency"])
        mine.append(ours(endpoint))
        if number < PEER_REPEATS:
            for name, found in theirs.items():
                found.append(peer(name, endpoint))
    asked = COUNT - FEW
    ideal = asked / CONCURRENCY * LATENCY
    wall, cpu, served = (statistics.median(column) for column in zip(*mine, strict=True))
    reached = statistics.median(bares)
    say(
        "synth/engine/efficiency",
        ideal / wall,
        n=REPEATS,
        ideal_s=ideal,
        bare=round(ideal / reached, 4),
        of_bare=round(reached / wall, 4),
    )
    say(
        "synth/engine/at_server",
        COUNT / CONCURRENCY * LATENCY / served,
        n=REPEATS,
        latency_s=round(statistics.median(latencies), 5),
    )
    say("synth/engine/cpu_ms_per_record", 1000 * cpu / asked, n=REPEATS)
    for name, found in theirs.items():
        theirs_wall, other, at_server = (
            statistics.median(column) for column in zip(*found, strict=True)
        )
        told = {
            "cpu_ms_per_record": round(1000 * other / asked, 3),
            "efficiency": round(ideal / theirs_wall, 4),
            "at_server": round(COUNT / CONCURRENCY * LATENCY / at_server, 4),
        }
        version = f"{PEERS[name][0]} {PEERS[name][1]}"
        say(f"synth/engine/cpu_vs_{name}", other / cpu, n=len(found), peer=version, **told)


def measure_ways(endpoint: Endpoint, other: Endpoint) -> None:
    """Measure the CPU of a record with a cache, and with two servers."""
    mine = [(ours(endpoint, cache=True), ours(endpoint, other=other)) for _ in range(REPEATS)]
    for name, found in zip(("cached", "pooled"), zip(*mine, strict=True), strict=True):
        cpu = statistics.median(cpu for _, cpu, _ in found)
        say(f"synth/engine/{name}_cpu_ms_per_record", 1000 * cpu / (COUNT - FEW), n=REPEATS)


def measure_kills(endpoint: Endpoint) -> None:
    """Kill five times at random moments; say what was asked again."""
    recipe = write_recipe("kills", make_prompts(COUNT), endpoint)
    wanted = digest_file(run(recipe, WORK / "whole") / "records.jsonl")
    out = WORK / "killed"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(WORK / ".killed.partial", ignore_errors=True)
    rng, before = random.Random(1), endpoint.seen()
    for number in range(5):
        more = ["--resume"] if number else []
        child = subprocess.Popen(command(recipe, out, *more), stdout=subprocess.DEVNULL)
        until = endpoint.seen() + rng.randint(100, 350)
        while endpoint.seen() < until and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run(command(recipe, out, "--resume"), check=True, stdout=subprocess.DEVNULL)
    resent = endpoint.seen() - before - COUNT
    assert digest_file(out / "output/records.jsonl") == wanted
    say("synth/resume/resent", resent, kills=5, in_flight=CONCURRENCY)
    say("synth/resume/resent_beyond_in_flight", max(0, resent - 5 * CONCURRENCY), kills=5)


def measure_rows(endpoint: Endpoint) -> None:
    """Say what a refused row and one more row cost, and whether concurrency changes bytes."""
    prompts = make_prompts(101)
    refused = [*prompts[:40], f"REFUSE {prompts[40]}", *prompts[41:100]]
    before = endpoint.seen()
    rows = run(write_recipe("refused", refused, endpoint), WORK / "refused") / "records.jsonl"
    left = len(rows.read_text().splitlines())
    asked = endpoint.seen() - before
    say("synth/engine/rows_lost_to_one_400", 100 - left, rows=100, requests=asked)
    cache = WORK / "cache.sqlite"
    cache.unlink(missing_ok=True)
    run(write_recipe("first", prompts[:100], endpoint, cache=cache), WORK / "first")
    before = endpoint.seen()
    run(write_recipe("more", prompts, endpoint, cache=cache), WORK / "more")
    say("synth/engine/requests_for_one_more_row", endpoint.seen() - before, rows=101)
    digests = [
        digest_file(
            run(write_recipe("same", prompts, endpoint, concurrency=at), WORK / "same")
            / "records.jsonl"
        )
        for at in (1, 64)
    ]
    say("synth/engine/same_bytes_at_1_and_64", float(digests[0] == digests[1]), rows=101)


def main() -> None:
    """Start the server and measure."""
    os.environ.update(QUIET)
    WORK.mkdir(parents=True, exist_ok=True)
    compile_package("stillroom")
    with serve(LATENCY) as endpoint:
        measure_cost(endpoint)
        with serve(LATENCY) as other:
            measure_ways(endpoint, other)
        measure_kills(endpoint)
    with serve(0.01) as endpoint:
        measure_rows(endpoint)


if __name__ == "__main__":
    main()
