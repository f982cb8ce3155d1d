"""A server is asked for much at once: nothing is lost, paid twice, or out of order."""

import json
import signal
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace

import pytest
from tests.processes import Process, run_process
from tests.unit.models.endpoint_server import Server, completion
from tests.unit.synth.conftest import make_passages

from stillroom.errors import BackendError
from stillroom.jobs import Job
from stillroom.provenance import digest_file
from stillroom.records import read_records
from stillroom.synth.jobs.records import JOB_KIND, RecordsRecipe
from stillroom.synth.pipeline.scheduler import _wait_for_unit, generate_units
from stillroom.synth.types import WorkItem

SAID = "The passage in other words, said of "


def answer(path, body, headers):
    """Say something of the passage alone, after a moment that differs."""
    if path == "/models":
        return {"data": [{"id": "m"}]}
    asked = body["messages"][-1]["content"]
    return 200, completion(SAID + asked[-60:-30]), {}, 0.002 * (len(asked) % 7)


@pytest.fixture
def serve():
    running = []

    def start(answer=answer):
        server = Server(answer).__enter__()
        running.append(server)
        return server

    yield start
    for server in running:
        server.__exit__()


def write_passages(path, count):
    base = make_passages()
    rows = []
    for number in range(count):
        one = base[number % len(base)]
        text = f"{one.text} It is number {number}."
        start = 1000 * number
        rows.append(
            replace(
                one, document_id=f"doc-{number % 9}", start=start, end=start + len(text), text=text
            )
        )
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    return path


def make_recipe(tmp_path, server, count=60, **more):
    settings = {
        "index": str(write_passages(tmp_path / f"passages-{count}.jsonl", count)),
        "model": f"{server.address}#m",
        "pipeline": {"generator": "rewrite", "filters": [], "attempts": 1, "include_passages": 0},
        "num_records": {"train": 1000, "held_out": 1000},
    }
    return RecordsRecipe.model_validate(settings | more)


def run_into(recipe, out):
    job = Job.start(out, recipe.model_dump_json(), overwrite=True)
    try:
        JOB_KIND.run(recipe, job)
    finally:
        job.close()
    return digest_file(out / "output/records.jsonl")


def asked(server):
    return [one for one in server.requests if one[0].endswith("/completions")]


def test_records_are_the_same_bytes_however_many_are_asked_at_once(tmp_path, serve):
    server = serve()
    digests = set()
    for concurrency in (1, 3, 16):
        server.gathers = concurrency
        recipe = make_recipe(tmp_path, server, engine={"concurrency": concurrency})
        digests.add(run_into(recipe, tmp_path / f"out-{concurrency}"))
    assert len(digests) == 1
    assert len(asked(server)) == 3 * 60
    assert server.most_busy == 16


@pytest.mark.parametrize("way", ["cache", "pool", "both", "hedged"])
def test_a_cache_and_a_pool_change_no_byte_and_ask_nothing_twice(tmp_path, serve, way):
    servers = serve(), serve()
    digests = set()
    for concurrency in (1, 64):
        more = {"cache": str(tmp_path / f"{concurrency}.db")} if way in {"cache", "both"} else {}
        engine = {"concurrency": concurrency}
        if way != "cache":
            engine |= {"fallbacks": [f"{servers[1].address}#m"], "weights": [1, 1]}
            engine |= {"hedge_after_s": 60} if way == "hedged" else {}
        recipe = make_recipe(tmp_path, servers[0], engine=engine, **more)
        for again in range(2 if more else 1):
            digests.add(run_into(recipe, tmp_path / f"out-{concurrency}-{again}"))
    assert len(digests) == 1
    assert len(asked(servers[0])) + len(asked(servers[1])) == 2 * 60


def test_one_refused_row_costs_that_row(tmp_path, serve):
    def refuse_one(path, body, headers):
        if body and "number 17." in json.dumps(body):
            return 400, {"error": {"message": "this text is not allowed"}}, {}
        return answer(path, body, headers)

    server = serve(refuse_one)
    run_into(make_recipe(tmp_path, server), tmp_path / "out")
    assert len(list(read_records(tmp_path / "out"))) == 59
    (dropped,) = map(json.loads, (tmp_path / "out/output/dropped.jsonl").read_text().splitlines())
    assert dropped["reason"] == "refused by the teacher's server"
    assert "not allowed" in dropped["text"]
    assert len(asked(server)) == 60


def test_a_server_that_refuses_everything_is_not_asked_for_every_row(tmp_path, serve):
    def refuse(path, body, headers):
        return 400, {"error": {"message": "unknown parameter top_p"}}, {}

    server = serve(refuse)
    with pytest.raises(BackendError, match="unknown parameter top_p") as caught:
        run_into(make_recipe(tmp_path, server, count=400), tmp_path / "out")
    assert caught.value.code == "synth.refused"
    assert len(asked(server)) < 100


def test_an_added_passage_asks_once_more(tmp_path, serve):
    server = serve()
    cache = str(tmp_path / "completions.db")
    run_into(make_recipe(tmp_path, server, count=40, cache=cache), tmp_path / "one")
    assert len(asked(server)) == 40
    run_into(make_recipe(tmp_path, server, count=41, cache=cache), tmp_path / "two")
    assert len(asked(server)) == 41
    assert len(list(read_records(tmp_path / "two"))) == 41


@pytest.mark.parametrize(
    ("budget", "most"),
    [
        ({"requests": 20}, 20),
        ({"tokens": 80}, 10),
        ({"cost": 0.0001, "input_price": 1.0, "output_price": 1.0}, 13),
    ],
)
def test_asking_ends_when_the_budget_is_spent(tmp_path, serve, budget, most):
    server = serve()
    recipe = make_recipe(tmp_path, server, count=200, budget=budget, engine={"concurrency": 4})
    run_into(recipe, tmp_path / "out")
    report = json.loads((tmp_path / "out/output/report.json").read_text())
    assert most <= report["spent"]["asks"] <= most + 1
    assert {one.fields["split"] for one in read_records(tmp_path / "out")} == {"train", "held_out"}
    assert len(asked(server)) <= most + 2 + 2 * 2 * 4
    said = (tmp_path / "out/events.jsonl").read_text()
    assert f"budget.{next(iter(budget))}" in said
    assert "all passages were asked about" not in said


def test_what_is_waited_for_can_be_cancelled():
    begun, left = threading.Event(), threading.Event()

    class Slow:
        concurrency = 4
        name = fingerprint = "slow"
        context_length = 100

        def generate(self, *given, **told): ...
        def stream(self, *given): ...
        def score(self, *given): ...
        def count_tokens(self, text): ...
        def close(self): ...

    class Waiting:
        round_size, finalize = 0, staticmethod(lambda draft: draft)

        def open(self, seeds, model):
            begun.set()
            left.wait(20)
            raise ValueError("stopped")

    class StopError(Exception): ...

    def pause():
        if begun.is_set():
            left.set()
            raise StopError

    seeds = [WorkItem(passage, "train") for passage in make_passages()]
    with pytest.raises(StopError):
        list(generate_units(seeds, Waiting(), Slow(), {}, batch_size=4, pause=pause))


def test_a_unit_that_is_done_just_after_the_wait_for_it_is_no_failure():
    class Late(Future):
        """Is done at the moment when a wait for it gives up."""

        def result(self, timeout=None):
            if timeout is not None and not self.done():
                self.set_result("made")
                raise TimeoutError
            return super().result(timeout)

    unit = Late()
    assert _wait_for_unit(unit, lambda: unit.done() or unit.set_result("made")) == "made"
    failed = Future()
    failed.set_exception(TimeoutError("the unit's own"))
    with pytest.raises(TimeoutError, match="own"):
        _wait_for_unit(failed, lambda: None)


@pytest.mark.slow  # test_steps kills one of 30 records twice
def test_a_killed_run_ends_with_the_same_bytes_and_pays_little_twice(tmp_path, serve):
    def slow(path, body, headers):
        given = answer(path, body, headers)
        return given if isinstance(given, dict) else (*given[:3], 0.02)

    server = serve(slow)
    recipe = make_recipe(tmp_path, server, count=300, engine={"concurrency": 8})
    wanted = run_into(recipe, tmp_path / "whole")
    file = tmp_path / "recipe.yaml"
    file.write_text(
        json.dumps(
            {
                "version": 1,
                "kind": "synth.records",
                **recipe.model_dump(mode="json", exclude_unset=True),
            }
        )
    )
    command = [sys.executable, "-m", "stillroom", "run", str(file), "--out", str(tmp_path / "out")]
    before = len(asked(server))
    child = Process(command)
    deadline = time.monotonic() + 60
    while len(asked(server)) < before + 90 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    done = run_process([*command, "--resume"])
    assert done.returncode == 0, done.stderr
    assert digest_file(tmp_path / "out/output/records.jsonl") == wanted
    assert len(asked(server)) - before - 300 <= 8 + 2  # what eight requests' ten threads hold
