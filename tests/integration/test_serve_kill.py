"""A server of jobs is killed: nothing is lost, and what was running ends with the same bytes."""

import json
import re
import signal
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from tests.processes import Process
from tests.unit.serve.test_jobs import ENDLESS, fill, follow, submit, wait_for

from stillroom.provenance import digest_file

LONG = {**ENDLESS, "train": {**ENDLESS["train"], "steps": 1000}}


class Serving:
    """``stillroom serve --jobs`` in a process of its own."""

    def __init__(self, folder):
        arguments = ["-m", "stillroom", "serve", "--jobs", folder, "--port", "0"]
        self.process = Process([sys.executable, *arguments])
        told, until = Path(self.process._talked.name), time.monotonic() + 60
        while not (found := re.search(r"http://[\d.:]+(?=/v1)", told.read_text())):
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.send_signal(signal.SIGKILL)
                raise AssertionError(told.read_text())
            time.sleep(0.05)
        self.client = httpx.Client(base_url=found[0], timeout=200)

    def end(self, number):
        self.client.close()
        self.process.send_signal(number)
        self.process.wait(60)


def children_of(pid):
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def files_of(folder, name):
    """Return what a job left, file by file, but the card, which names its folder."""
    output = folder / "jobs" / name / "output"
    return {
        path.relative_to(output).as_posix(): digest_file(path)
        for path in output.rglob("*")
        if path.is_file() and path.name != "README.md"
    }


@pytest.fixture
def serve():
    """Return what starts a server; all that run at the end are killed."""
    started = []

    def start(folder):
        started.append(Serving(folder))
        return started[-1]

    yield start
    for serving in started:
        serving.end(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_survive_the_end_of_their_server(serve, tmp_path, number):
    fill(tmp_path)
    serving = serve(tmp_path)
    running, waiting = submit(serving.client, LONG), submit(serving.client)
    until = time.monotonic() + 200
    while not _has_trained(serving.client, running):
        assert time.monotonic() < until
        time.sleep(0.1)
    begun = children_of(serving.process.pid)
    assert begun
    serving.end(number)
    until = time.monotonic() + 10
    while any(map(psutil.pid_exists, begun)):
        assert time.monotonic() < until, "a job outlived its server"
        time.sleep(0.05)
    states = [
        json.loads(path.read_text())["state"]
        for path in sorted(tmp_path.glob(".stillroom/jobs/*/ticket.json"))
    ]
    assert states == ["running" if number == signal.SIGKILL else "queued", "queued"]
    serving = serve(tmp_path)
    events = follow(serving.client, running)
    assert "resumed" in [event["event"] for _, event in events]
    assert follow(serving.client, waiting)[-1][1]["state"] == "finished"
    straight = submit(serving.client, LONG)
    done = wait_for(serving.client, straight, "finished", "failed")
    taken_up = serving.client.get(f"/v1/jobs/{running}").json()
    assert files_of(tmp_path, running) == files_of(tmp_path, straight)
    assert (taken_up["takes"], done["takes"]) == (2, 1)


def _has_trained(client, name):
    job = client.get(f"/v1/jobs/{name}").json()
    assert job["state"] == "running", job["error"]
    progress = job["progress"] or {}
    last = progress.get("progress", {})
    return last.get("name") == "train" and last["done"] > 5
