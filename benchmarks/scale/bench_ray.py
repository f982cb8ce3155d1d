"""The same recipe here, on one Ray worker, on two, and on two of which one is killed.

Two jobs. ``asks``: records rewritten by an endpoint that answers after 0.4 s and takes two requests
a worker at once, so that two workers may have twice as many in flight (the same could be had here
with a higher ``engine.concurrency``; a cluster adds the workers' own cores and addresses).
``reading``: duplicates among files of records, whose lines the workers parse and whose n-grams they
hash; that is processor time, and two workers share the machine's cores with the job and with
whatever else runs. Clusters and workers are started before the clock; repeats are interleaved.

Usage: bench_ray.py [REPEATS [asks] [reading]]

Ends with 1 where any way gave other bytes than the rest.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from stillroom.flow.job import run_job
from stillroom.jobs import Job
from stillroom.jobs.engines import Engine, LocalEngine
from stillroom.recipes import Recipe, dump_recipe, parse_recipe
from stillroom.recipes.settings import RaySettings
from stillroom.records import Message, Record, write_records
from stillroom.synth.jobs.dedup import DedupRecipe

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench" / "scale" / "ray"
SERVER = ROOT / "benchmarks" / "synth" / "engine_server.py"
LATENCY_S, ASKED, READ = 0.4, 48, 20_000
KINDS = ("asks", "reading")


def make_records(count: int, words: int) -> list[Record]:
    """Return records of drawn words, some of them twice."""
    rng = random.Random(0)
    vocabulary = [
        "".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(5000)
    ]
    texts: list[str] = []
    for _ in range(count):
        known = rng.choice(texts) if texts and rng.random() < 0.1 else ""
        texts.append(known or " ".join(rng.choices(vocabulary, k=words)))
    return [Record((Message("assistant", text),), {"row": at}) for at, text in enumerate(texts)]


def ask(address: str) -> Recipe:
    """Return the recipe that asks the endpoint."""
    text = f"""
version: 1
kind: synth.records
seeds: {WORK / "seeds.jsonl"}
model: "{address}#m"
pipeline: {{generator: rewrite, filters: [shape, repetition]}}
held_out: 0
num_records: {{train: {ASKED}, held_out: 0}}
engine: {{concurrency: 2}}
"""
    return parse_recipe(text, "bench")


def run_asks(address: str, engine: Engine, name: str) -> tuple[str, float]:
    """Return the digest and the seconds of the job that asks."""
    recipe = ask(address)
    out = WORK / name
    start = time.perf_counter()
    job = Job.start(out, dump_recipe(recipe), seed=recipe.seed, overwrite=True)
    digest = run_job(recipe, job, engine).digest
    return digest, time.perf_counter() - start


def run_reading(engine: Engine, name: str) -> tuple[str, float]:
    """Return the digest and the seconds of the job that reads."""
    recipe = DedupRecipe(records=(str(WORK / "many.jsonl"),))
    start = time.perf_counter()
    job = Job.start(WORK / name, dump_recipe(recipe), overwrite=True)
    digest = run_job(recipe, job, engine).digest
    return digest, time.perf_counter() - start


def kill_a_worker(engine: Engine, after_s: float) -> threading.Thread:
    """Kill one of an engine's worker processes in a while."""
    import ray

    def strike() -> None:
        time.sleep(after_s)
        posts = engine._posts  # type: ignore[attr-defined]
        os.kill(ray.get(posts[0].actor.ping.remote()), signal.SIGKILL)

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


def count_seen(address: str) -> int:
    """Return how many completions the endpoint was asked for."""
    with urlopen(address.replace("/v1", "/count")) as reply:  # noqa: S310  # our own server
        return int(json.load(reply)["seen"])


def tell(what: str, value: object, **more: object) -> None:
    """Print one figure."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(json.dumps({"what": what, "value": value, **more, "machine": machine}), flush=True)


def compare(address: str, repeats: int, kinds: Sequence[str]) -> bool:
    """Run all ways and print the figures; return whether all gave the same bytes."""
    import ray

    from stillroom.jobs.engines.ray import RayEngine

    cluster = RayEngine(RaySettings(num_workers=3), print)
    one, two = (RayEngine(RaySettings(num_workers=n), print) for n in (1, 2))
    try:
        same = []
        if "asks" in kinds:
            same.append(compare_asks(address, repeats, one, two))
        for engine in (one, two):
            engine._dismiss()
        if "reading" in kinds:
            same.append(compare_reading(repeats, one, two))
        runs = f"{' and '.join(kinds)}: here, 1 worker, 2 workers ({repeats} each)"
        more = ", and one of two killed" if "asks" in kinds else ""
        tell("scale/ray/digest_equal", all(same), runs=runs + more)
        return all(same)
    finally:
        for engine in (one, two, cluster):
            engine.close()
        if ray.is_initialized():
            ray.shutdown()


def compare_asks(address: str, repeats: int, one: Engine, two: Engine) -> bool:
    """Measure the job that asks; return whether all digests were one."""
    digests = {run_asks(address, LocalEngine(), "local")[0]}
    for name, engine in (("one", one), ("two", two)):  # workers start and open the model
        digests.add(run_asks(address, engine, name)[0])
    spent: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(repeats):
        for name, engine in (("one", one), ("two", two)):
            before = count_seen(address)
            digest, seconds = run_asks(address, engine, name)
            plain = count_seen(address) - before  # at last of the two workers, unharmed
            digests.add(digest)
            spent[name].append(seconds)
    tell(
        "scale/ray/speedup_2_workers",
        round(statistics.median(a / b for a, b in zip(*spent.values(), strict=True)), 3),
        work=f"{ASKED} records of an endpoint with {LATENCY_S} s latency, 2 at once a worker",
        seconds={name: [round(value, 2) for value in each] for name, each in spent.items()},
        n=repeats,
    )
    before = count_seen(address)
    striker = kill_a_worker(two, 2.0)
    digests.add(run_asks(address, two, "killed")[0])
    striker.join()
    again = count_seen(address) - before - plain
    tell("scale/ray/killed_worker_asks_again", again, lost=two.lost, of=plain)  # type: ignore[attr-defined]
    return len(digests) == 1


def compare_reading(repeats: int, one: Engine, two: Engine) -> bool:
    """Measure the job that reads; return whether all digests were one."""
    ways = {"one": one, "two": two, "local": LocalEngine()}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    digests = set()
    for _ in range(repeats):
        for name, engine in ways.items():
            digest, seconds = run_reading(engine, f"read-{name}")
            digests.add(digest)
            spent[name].append(seconds)
    ratio = [a / b for a, b in zip(spent["one"], spent["two"], strict=True)]
    tell(
        "scale/ray/speedup_2_workers_reading",
        round(statistics.median(ratio), 3),
        work=f"duplicates among {READ} records, the start of Ray Data included each time",
        seconds={name: [round(value, 2) for value in each] for name, each in spent.items()},
        n=repeats,
    )
    return len(digests) == 1


def read_arguments(words: Sequence[str] | None = None) -> tuple[int, Sequence[str]]:
    """Return how often each way is measured, and which jobs; others are refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("repeats", type=int, nargs="?", default=3, help="of each way, 1 or more")
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; default all")
    given = parser.parse_args(words)
    unknown = sorted(set(given.kinds) - set(KINDS))
    if unknown or given.repeats < 1:
        parser.error(f"{', '.join(unknown) or given.repeats} cannot be measured")
    return given.repeats, given.kinds or KINDS


def main() -> None:
    """Make records, start the endpoint, compare."""
    repeats, kinds = read_arguments()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    write_records(WORK / "seeds.jsonl", make_records(ASKED, 60))
    write_records(WORK / "many.jsonl", make_records(READ, 120))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    server = subprocess.Popen([sys.executable, str(SERVER), str(port), str(LATENCY_S)])
    address = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(100):
            try:
                count_seen(address)
                break
            except OSError:
                time.sleep(0.2)
        is_same = compare(address, repeats, kinds)
    finally:
        server.terminate()
        server.wait()
    if not is_same:
        sys.exit("the ways gave different bytes")


if __name__ == "__main__":
    main()
